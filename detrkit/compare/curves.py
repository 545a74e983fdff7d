"""Curves of AP against epochs and against minutes, one line for each row, with a band over its seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detrkit.compare.comparison import short_names
from detrkit.compare.spread import Spread
from detrkit.compare.targets import Row
from detrkit.drawing.charts import Theme, frame, ink, line_look, literal, new_figure, to_png
from detrkit.runs.history import Evaluation, Run


def draw_curves(rows: Sequence[Row], *, theme: Theme = "light") -> bytes | None:
    """A PNG of two panels; None if no row has an evaluation.

    Thick: the mean over seeds; band: one standard deviation to each side; where seeds have been evaluated at
    different epochs, the mean is over those that have. Against minutes a mean joins each epoch's mean minutes.
    """
    from matplotlib.ticker import MaxNLocator

    trained = [(name, row) for name, row in zip(short_names([r.name for r in rows]), rows, strict=True) if row.trained]
    if not trained:
        return None
    below = 0.25 * -(-len(trained) // 2) + 0.2
    figure = new_figure(10, 4 + below, theme)
    by_epoch, by_minute = figure.subplots(1, 2, sharey=True)
    timed, shade = False, 0.2 if len(trained) <= 4 else 0.1
    for index, (name, row) in enumerate(trained):
        look = {
            **line_look(index),
            "marker": "o" if all(len(run.evaluations) < 30 for run in row.trained) else None,
            "markersize": 3,
            "linewidth": 1.6,
        }
        epochs, minutes, means, deviations = mean_curve(row.trained)
        _line(by_epoch, epochs, means, deviations, look, shade, label=literal(name))
        known = ~np.isnan(minutes)
        timed = timed or bool(known.any())
        _line(by_minute, minutes[known], means[known], deviations[known], look, shade)
    frame(by_epoch, theme, x="epochs", y="AP on the validation split (%)")
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
    frame(by_minute, theme, x="minutes of training, evaluations included")
    if not timed:
        told = "these runs did not note their time"
        by_minute.text(0.5, 0.5, told, ha="center", transform=by_minute.transAxes, color=ink(theme))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=ink(theme), fontsize=9)
    several = any(len(row.seeds) > 1 for _, row in trained)
    if several:
        figure.suptitle("mean and standard deviation over seeds", fontsize=9, color=ink(theme))
    return to_png(figure)


def mean_curve(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, mean minutes (nan where a run did not note them), mean AP in percent and its deviation (nan for one)."""
    at: dict[int, list[tuple[int, Evaluation]]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            at.setdefault(evaluation.epoch, []).append((run.seed, evaluation))
    epochs = sorted(at)
    minutes = [_mean([e.minutes if e.minutes is not None else np.nan for _, e in at[epoch]]) for epoch in epochs]
    scored = [[(seed, 100 * (e.stats["AP"] or 0.0)) for seed, e in at[epoch]] for epoch in epochs]
    values = [Spread.over_seeds(one).values for one in scored]
    deviations = [np.std(v, ddof=1) if len(v) > 1 else np.nan for v in values]
    return np.array(epochs, float), np.array(minutes, float), np.array([_mean(v) for v in values]), np.array(deviations)


def _line(
    axis, x: np.ndarray, means: np.ndarray, deviations: np.ndarray, look: dict, shade: float, label: str | None = None
) -> None:
    axis.plot(x, means, label=label, **look)
    band = ~np.isnan(deviations)
    low, high = np.maximum(means - deviations, 0), means + deviations
    axis.fill_between(x[band], low[band], high[band], color=look["color"], alpha=shade, linewidth=0)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
