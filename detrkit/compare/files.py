"""A comparison as files: Markdown, LaTeX, CSV, JSON, the curves and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from detrkit.compare.comparison import BEST, EQUAL, LAST, STATS, Comparison, Measured
from detrkit.compare.costs import Costs
from detrkit.compare.curves import draw_curves
from detrkit.compare.intervals import Difference, Interval
from detrkit.compare.latex import to_latex
from detrkit.compare.page import make_page
from detrkit.compare.sheets import runs_sheet
from detrkit.compare.table import Sheet
from detrkit.compare.timing import Timing
from detrkit.drawing.charts import THEMES
from detrkit.drawing.faults import Faults
from detrkit.writing import write_bytes, write_text

_NUMBERS = re.compile(r"[-+.\de ]+")  # one, or a list's with spaces between


def write_comparison(
    folder: Path,
    comparison: Comparison,
    sheets: Sequence[Sheet],
    costs: Mapping[str, Costs],
    timings: Mapping[str, Timing],
    faults: Faults,
) -> list[Path]:
    """Write table.md, .tex, .csv, .json, report.html and, where anything is trained, curves.png.

    All are made before the first is written, and each then takes its place in one step. faults: gets the curves where
    they cannot be drawn.
    """
    rows = [m.row for m in comparison.rows]
    drawn = faults.draw("curves", lambda: {theme: draw_curves(rows, theme=theme) for theme in THEMES}) or {}
    curves = {str(theme): png for theme, png in drawn.items() if png is not None}
    records = [_record(m, costs.get(m.row.name), timings.get(m.row.name)) for m in comparison.rows]
    about = {
        "baseline": comparison.baseline,
        "equal_epoch": comparison.equal_epoch,
        "epochs_to_ap": comparison.epochs_to,
        "spearman": comparison.rank,
        "spearman_rows": comparison.rank_rows,
    }
    every = [*sheets, runs_sheet(comparison)] if any(row.trained for row in rows) else sheets
    contents = {
        "table.md": to_markdown(every),
        "table.tex": to_latex(sheets),
        "table.csv": _to_csv([_flat(record) for record in records]),
        "table.json": json.dumps({**about, "rows": records}, indent=1, ensure_ascii=False),
        "report.html": make_page(every, curves, folder),
    }
    for name, content in contents.items():
        write_text(folder / name, content)
    if curves:
        write_bytes(folder / "curves.png", curves["light"])
    return [folder / name for name in (*contents, *(["curves.png"] if curves else []))]


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """All tables, each under its title and with its notes."""
    parts = []
    for sheet in sheets:
        table = [sheet.columns, ("---", *["---:"] * (len(sheet.columns) - 1)), *sheet.rows]
        lines = ["| " + " | ".join(_as_shown(cell).replace("|", "\\|") for cell in row) + " |" for row in table]
        notes = [f"\n{_as_shown(note)}" for note in sheet.notes]
        parts.append("\n".join([f"## {_as_shown(sheet.title)}\n", *lines, *notes]))
    return "\n\n".join(parts) + "\n"


def _as_shown(text: str) -> str:
    """A text as Markdown shows it, in one line: a name like `<b>` would be taken for HTML, and vanish."""
    return " ".join(text.split()).replace("<", "\\<")


def _record(m: Measured, costs: Costs | None, timing: Timing | None) -> dict[str, Any]:
    """One row as plain values; AP and its parts in percent."""
    record: dict[str, Any] = {
        "recipe": m.row.name,
        "title": m.row.recipe.title,
        "seeds": list(m.row.seeds),
        "runs": [str(run.path) for run in m.row.runs],
        "epochs": [run.evaluations[-1].epoch for run in m.row.trained],
        "minutes": [run.evaluations[-1].minutes for run in m.row.trained],
    }
    for kind in (LAST, BEST, EQUAL):
        record[kind] = {
            name: {"mean": s.mean, "deviation": s.deviation, "values": list(s.values)}
            for name in STATS
            if (s := m.at[kind].get(name)) is not None
        }
        record[kind]["AP_difference"] = m.difference[kind]
    if m.paired is not None:
        record["paired"] = {
            "seeds": list(m.paired.seeds),
            "differences": {name: _difference(found) for name, found in m.paired.differences.items()},
        }
    if m.errors:
        record["costs_of_errors"] = {
            kind: {"mean": s.mean, "deviation": s.deviation, "values": list(s.values)} for kind, s in m.errors.items()
        }
    if m.reached is not None:
        faster = None if m.reached.faster is None else asdict(m.reached.faster)
        record["epochs_to_ap"] = {"mean": m.reached.mean, "values": list(m.reached.epochs), "faster": faster}
    if costs is not None:
        total = costs.work.total
        record["costs"] = {
            "parameters": total.parameters,
            "trained_parameters": total.trainable,
            "multiply_adds": total.multiply_adds,
            "multiply_adds_plain_form": costs.work.plain_form,
            "multiply_adds_saved_by_shared_keys": costs.work.saved,
            "multiply_adds_on_zeros": costs.work.zeros,
            "multiply_adds_coco_mean": costs.coco_mean,
            "height": costs.work.height,
            "width": costs.work.width,
            "assumed_classes": costs.assumed_classes,
            "uncounted": dict(costs.work.uncounted),
        }
    if timing is not None:
        record["time"] = {**vars(timing), "median_milliseconds": median(timing.milliseconds)}
        record["time"]["images_per_second"] = timing.images_per_second
    record["published"] = dict(m.row.published or {})
    return record


def _difference(found: Difference) -> dict[str, Any]:
    """In percent. seeds_needed: -1 where no number of seeds that was tried is enough."""

    def bounds(interval: Interval | None) -> dict[str, float | None]:
        return {"low": None, "high": None} if interval is None else vars(interval)

    needed = found.seeds_needed
    return {
        "value": found.value,
        **bounds(found.interval),
        "over": found.over,
        "excludes_zero": found.is_sure,
        "by_seed": list(found.by_seed),
        "over_seeds": bounds(found.over_seeds),
        "over_images": bounds(found.over_images),
        "seeds_needed": -1 if needed is not None and math.isinf(needed) else needed,
    }


def _harmless(value: Any) -> Any:
    """A text as a spreadsheet shows it: one that it would take for a formula gets an apostrophe before it."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula and not _NUMBERS.fullmatch(value) else value


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as `last.AP.mean`; lists as texts with spaces between."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key == "uncounted":
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + key] = " ".join("" if one is None else str(one) for one in value)
        else:
            flat[prefix + key] = value
    return flat


def _to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()
