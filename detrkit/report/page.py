"""A run's report as one HTML page: numbers, curves, kinds of errors, confusion, and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from detrkit.data import Category
from detrkit.drawing.charts import THEMES
from detrkit.drawing.faults import Faults
from detrkit.drawing.page import html_chart, html_notes, html_page, html_picture, html_section, html_table
from detrkit.evaluation.at_threshold import Sweep, Tally
from detrkit.evaluation.coco_stats import ClassResult, EvalResult
from detrkit.evaluation.errors import AGAIN, BOTH, CLASS, MISSED, NOTHING, PLACE
from detrkit.report.charts import draw_thresholds, draw_training
from detrkit.wording import counted, percent, score

MATRIX = 30  # classes of a confusion matrix at most: beyond them a list says more
PAIRS = 30  # lines of that list at most
HEAT = 0.75  # of a cell with all of its row: more of the colour, and its number could not be read

MEANING = {
    CLASS: "a box on an object (IoU from 0.5 on) of another class",
    PLACE: "the right class, but a box that fits badly (IoU 0.1 to 0.5)",
    BOTH: "neither the class nor the place is right",
    AGAIN: "an object that a better detection has found already",
    NOTHING: "a box where there is no object (IoU under 0.1)",
    MISSED: "an object that no detection is near",
}


@dataclass(frozen=True)
class Shown:
    """An image on the page. jpeg: None where it could not be drawn."""

    title: str
    tally: Tally
    jpeg: bytes | None


@dataclass(frozen=True)
class Findings:
    """All that a report tells of one evaluation; percentages are made on the page.

    Args:
        truths_by_size: how many truths are small, medium and large
        counts, costs: of each kind of error, and AP50 in [0, 1] that it costs
        by_class: what was found at the threshold, by category id
        confusion: [K + 1, K + 1] of `categories`, the last row and column for nothing
        chosen: whether the threshold was given, and not looked for
    """

    result: EvalResult
    categories: Sequence[Category]
    truths_by_size: Sequence[int]
    counts: Mapping[str, int]
    costs: Mapping[str, float]
    swept: Sweep
    threshold: float
    chosen: bool
    by_class: Mapping[int, Tally]
    confusion: np.ndarray
    worst: Sequence[Shown]
    best: Sequence[Shown]


def report_page(
    title: str, facts: Sequence[str], metrics: Sequence[Mapping[str, Any]], found: Findings, recipe: str, faults: Faults
) -> str:
    """The page.

    Args:
        facts: lines below the title
        metrics: the lines of the run's metrics; none for weights without a run
        recipe: TOML, shown on demand
        faults: what could not be drawn so far; gets the charts that cannot be, and is told below the facts
    """
    curves = faults.draw("Training", lambda: {theme: draw_training(metrics, theme) for theme in THEMES}) or {}
    drawn: dict[str, bytes] = {theme: png for theme, png in curves.items() if png is not None}
    thresholds = _thresholds(found, faults)
    parts = [
        html_notes([*facts, *faults]),
        _numbers(found),
        html_section("Training", html_chart(drawn, "AP and loss over the training")) if drawn else "",
        _classes(found),
        _errors(found),
        thresholds,
        _confusion(found),
        _images("Worst images", found.worst, found.threshold),
        _images("Best images", found.best, found.threshold),
        f"<section><details><summary>Recipe</summary><pre>{escape(recipe)}</pre></details></section>",
    ]
    return html_page(title, "\n".join(part for part in parts if part))


def _numbers(found: Findings) -> str:
    stats = found.result.stats
    rows = [
        ["all", *(percent(stats[name]) for name in ("AP", "AP50", "AP75", "AR100")), str(sum(found.truths_by_size))],
        *(
            [name, percent(stats[f"AP{letter}"]), "-", "-", percent(stats[f"AR{letter}"]), str(count)]
            for name, letter, count in zip(("small", "medium", "large"), "SML", found.truths_by_size, strict=True)
        ),
    ]
    table = html_table(["objects", "AP", "AP50", "AP75", "AR100", "objects in the data"], rows, sortable=False)
    notes = [
        f"COCO's numbers on {counted(found.result.images, 'image')}, in percent. Small objects have under 32 x 32 "
        "pixels, medium ones under 96 x 96."
    ]
    return html_section("Average precision and recall", table, notes)


def _classes(found: Findings) -> str:
    columns = ["class", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR100"]
    columns += ["precision", "recall", "objects", "right", "wrong", "missed"]
    rows = [_class_row(row, found.by_class.get(row.category_id)) for row in found.result.per_class]
    table = html_table(columns, rows, texts=["class"])
    notes = [f"From precision on: detections with a score of {score(found.threshold)} or more, at IoU 0.5."]
    return html_section("Classes", table, notes)


def _class_row(row: ClassResult, tally: Tally | None) -> list[str]:
    tally = tally or Tally(0, 0, 0)
    numbers = (row.AP, row.AP50, row.AP75, row.APS, row.APM, row.APL, row.AR100, tally.precision, tally.recall)
    counts = (row.truths, tally.right, tally.wrong, tally.missed)
    return [row.name, *map(percent, numbers), *map(str, counts)]


def _errors(found: Findings) -> str:
    most = max(found.costs.values(), default=0.0)
    rows = "\n".join(
        f'<tr><td class="text">{kind}</td><td class="text">{meaning}</td><td>{found.counts[kind]}</td>'
        f"<td>{100 * found.costs[kind]:.1f}</td>"
        f'<td class="text"><div class="bar" style="width:{12 * found.costs[kind] / most if most else 0:.2f}rem"></div>'
        "</td></tr>"
        for kind, meaning in MEANING.items()
    )
    table = (
        '<div class="wide"><table><thead><tr><th class="text">kind</th><th class="text">what it is</th><th>errors</th>'
        f'<th>costs AP50</th><th class="text"></th></tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    )
    notes = [
        "The kinds of TIDE (ECCV 2020), over all detections whatever their score. Cost: how much AP50 rises where the "
        "errors of one kind, and no others, are put right; costs do not add up.",
        "Many errors that cost nothing are detections of low scores, which come after everything that is right.",
    ]
    return html_section("Kinds of errors", table, notes)


def _thresholds(found: Findings, faults: Faults) -> str:
    if not len(found.swept.thresholds):
        return html_section("Thresholds", "<p>Nothing was detected.</p>")

    def draw() -> dict[str, bytes]:
        return {theme: draw_thresholds(found.swept, found.threshold, theme) for theme in THEMES}

    drawn = faults.draw("Thresholds", draw)
    told = "precision, recall and F1 against the threshold; precision against recall"
    chart = html_chart(drawn, told) if drawn else ""
    best = "nothing being right at any threshold" if found.swept.best is None else "where F1 is highest"
    how = "as asked" if found.chosen else best
    tally = _sum(found.by_class.values())
    notes = [
        f"At {score(found.threshold)}, {how}: precision {_of_hundred(tally.precision)}, "
        f"recall {_of_hundred(tally.recall)}, F1 {_of_hundred(tally.f1)}, at IoU 0.5 over all classes. "
        f"What follows counts detections from this score on; use it with "
        f"detrkit predict --threshold {score(found.threshold)}."
    ]
    return html_section("Thresholds", chart, notes)


def _of_hundred(share: float | None) -> str:
    return "unknown" if share is None else f"{percent(share)} %"


def _confusion(found: Findings) -> str:
    names = [category.name for category in found.categories]
    table = found.confusion
    pairs = [(int(table[row, column]), row, column) for row, column in zip(*np.nonzero(table), strict=True)]
    pairs = sorted((one for one in pairs if one[1] != one[2]), key=lambda one: -one[0])[:PAIRS]
    truth, detected = [*names, "nothing"], [*names, "not detected"]
    listed = html_table(
        ["truth", "detected as", "times", "of the truths"],
        [[truth[row], detected[column], str(count), _share(count, table[row], row)] for count, row, column in pairs],
        texts=["truth", "detected as"],
    )
    notes = [
        f"Truths and detections from {score(found.threshold)} on, paired by place alone: IoU from 0.5 on, the best "
        "first. Nothing: detections without a truth. Shares are of the truths of a row's class."
    ]
    if len(names) <= MATRIX:
        return html_section("Confusion", _matrix(table, truth, detected) + listed, notes)
    return html_section("Confusion", listed, [f"The {len(pairs)} most frequent.", *notes])


def _matrix(table: np.ndarray, truth: Sequence[str], detected: Sequence[str]) -> str:
    """Counts, the darker the larger their share of the row's truths."""
    head = "".join(f"<th>{escape(name)}</th>" for name in detected)
    lines = []
    for row, name in enumerate(truth):
        total = int(table[row].sum())
        cells = "".join(
            f'<td style="background:rgba(var(--heat), {HEAT * count / total if total else 0:.2f})">{count}</td>'
            for count in table[row].tolist()
        )
        lines.append(f'<tr><th class="text">{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="wide"><table class="matrix"><thead><tr><th class="text">truth, detected as</th>'
        f"{head}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _images(title: str, shown: Sequence[Shown], threshold: float) -> str:
    if not shown:
        return ""
    cards = []
    for one in shown:
        tally = one.tally
        told = f"{one.title}: {tally.right} right, {tally.wrong} wrong, {tally.missed} missed"
        picture = "<p>It could not be drawn.</p>" if one.jpeg is None else html_picture(one.jpeg, told, kind="jpeg")
        cards.append(f"<p>{escape(told)}</p>{picture}")
    notes = [f"By F1 at a score of {score(threshold)} and IoU 0.5. First the truth, dashed, then what was detected."]
    return html_section(title, "\n".join(cards), notes)


def _sum(tallies) -> Tally:
    tallies = list(tallies)
    return Tally(*(sum(getattr(one, name) for one in tallies) for name in ("right", "wrong", "missed")))


def _share(count: int, row: np.ndarray, number: int) -> str:
    """The share of a class's truths; none where there is no truth."""
    return "-" if number == len(row) - 1 else f"{100 * count / row.sum():.1f} %"
