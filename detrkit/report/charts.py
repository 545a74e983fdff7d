"""The charts of a report: how training went, and what each threshold gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from detrkit.drawing.charts import Theme, frame, ink, line_look, literal, new_figure, to_png
from detrkit.evaluation.at_threshold import Sweep


def draw_training(lines: Sequence[Mapping[str, Any]], theme: Theme) -> bytes | None:
    """A PNG of AP, of the loss and of its terms over a run's metrics; None where there are none yet.

    Against epochs where an evaluation tells how long one is, else against steps. Terms are those of the last layer, as
    they are before they are weighed.
    """
    measured = [line for line in lines if line.get("kind") == "evaluate"]
    trained = [line for line in lines if line.get("kind") == "train"]
    if not measured and not trained:
        return None
    unit = "epochs" if measured else "steps"
    where = epochs_at(measured) if measured else float
    figure = new_figure(11, 4.2, theme)
    precision, loss, terms = figure.subplots(1, 3)
    for index, name in enumerate(("AP50", "AP", "AP75")):
        known = [(where(line["step"]), 100 * line[name]) for line in measured if line.get(name) is not None]
        _curve(precision, known, index, name)
    if not precision.get_lines():
        told = "no objects to measure on" if measured else "not evaluated yet"
        precision.text(0.5, 0.5, told, ha="center", transform=precision.transAxes, color=ink(theme))
    frame(precision, theme, x=unit, y="%")
    precision.set_title("average precision, validation split", color=ink(theme), fontsize=10)
    _curve(loss, [(where(line["step"]), line["loss"]) for line in trained if line.get("loss") is not None], 0, "")
    frame(loss, theme, x=unit)
    loss.set_title("training loss", color=ink(theme), fontsize=10)
    names = dict.fromkeys(name for line in trained for name in line.get("losses", {}) if _is_term(name))
    for index, name in enumerate(names):
        known = [(where(line["step"]), line["losses"].get(name)) for line in trained]
        _curve(terms, [(x, y) for x, y in known if y is not None], index, literal(name))
    frame(terms, theme, x=unit)
    terms.set_title("terms of the last layer, not weighed", color=ink(theme), fontsize=10)
    for axis in (precision, terms):
        if axis.get_lines():
            axis.legend(frameon=False, labelcolor=ink(theme), fontsize=8)
    return to_png(figure)


def draw_thresholds(swept: Sweep, threshold: float, theme: Theme) -> bytes:
    """A PNG of precision, recall and F1 against the threshold, and of precision against recall, with a mark."""
    figure = new_figure(11, 4, theme)
    by_score, by_recall = figure.subplots(1, 2)
    for index, (name, values) in enumerate(
        (("precision", swept.precision), ("recall", swept.recall), ("F1", swept.f1))
    ):
        _curve(by_score, list(zip(swept.thresholds, 100 * values, strict=True)), index, name, marks=False)
    by_score.axvline(threshold, color=ink(theme), linewidth=1, linestyle=":")
    _curve(by_recall, list(zip(100 * swept.recall, 100 * swept.precision, strict=True)), 0, "", marks=False)
    at = int((swept.thresholds >= threshold).sum()) - 1
    if at >= 0:
        by_recall.plot(100 * swept.recall[at], 100 * swept.precision[at], "o", color=ink(theme))
    frame(by_score, theme, x="lowest score that counts", y="%")
    frame(by_recall, theme, x="recall (%)", y="precision (%)")
    for axis in (by_score, by_recall):
        axis.set_ylim(0, 102)
    by_score.set_xlim(0, 1)
    by_recall.set_xlim(0, 102)
    by_score.legend(frameon=False, labelcolor=ink(theme), fontsize=9)
    return to_png(figure)


def epochs_at(measured: Sequence[Mapping[str, Any]]) -> Callable[[float], float]:
    """How many epochs a count of steps is, on straight lines between evaluations and beyond the last.

    Epochs of a run may differ in length: a resume can change the batch. measured: one evaluation or more.
    """
    known = {0: 0, **{line["step"]: line["epoch"] for line in measured}}
    steps = sorted(known)
    epochs = [known[step] for step in steps]
    pace = (epochs[-1] - epochs[-2]) / (steps[-1] - steps[-2])
    return lambda step: float(np.interp(step, steps, epochs)) + max(0.0, step - steps[-1]) * pace


def _is_term(name: str) -> bool:
    """Whether a loss is a term of the last layer's own: no other layer's, no extra queries', no mere number."""
    return "." not in name and "/" not in name and name != "class_error"


def _curve(axis, points: Sequence[tuple[float, float]], index: int, name: str, *, marks: bool = True) -> None:
    if points:
        marker = "o" if marks and len(points) < 30 else None
        look = {"linewidth": 1.6, "marker": marker, "markersize": 3, **line_look(index)}
        axis.plot(*zip(*points, strict=True), label=name, **look)
