"""A comparison as one HTML page that needs nothing else; links lead from it to the runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from detrkit.compare.table import Sheet
from detrkit.drawing.page import html_chart, html_page, html_section, html_table


def make_page(sheets: Sequence[Sheet], curves: Mapping[str, bytes], folder: Path) -> str:
    """The page. curves: PNG bytes by "light" and "dark"; empty where nothing is trained. folder: where it will lie."""
    body = [html_section("Curves", html_chart(curves, "AP against epochs and minutes of training"))] if curves else []
    for sheet in sheets:
        links = {cell: _link(Path(place), folder) for cell, place in sheet.places.items() if Path(place).is_dir()}
        texts = [
            title
            for at, title in enumerate(sheet.columns)
            if not at or any(row[at] in sheet.places for row in sheet.rows)
        ]
        table = html_table(sheet.columns, sheet.rows, texts=texts, links=links)
        body.append(html_section(sheet.title, table, sheet.notes))
    return html_page("Comparison", "\n".join(body))


def _link(run: Path, folder: Path) -> str:
    """From a folder to a run's report, or to the run where it has none, so that both can be moved together."""
    report = run / "report.html"
    way = os.path.relpath((report if report.is_file() else run).resolve(), folder.resolve())
    return quote(Path(way).as_posix())
