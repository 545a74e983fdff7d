"""A comparison as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detrkit.compare.sheets import Sheet
from detrkit.drawing.page import html_chart, html_page, html_section, html_table


def make_page(sheets: Sequence[Sheet], curves: Mapping[str, bytes]) -> str:
    """The page. curves: PNG bytes by "light" and "dark"; empty where nothing is trained."""
    body = [html_section("Curves", html_chart(curves, "AP against epochs and minutes of training"))] if curves else []
    body += [html_section(sheet.title, html_table(sheet.columns, sheet.rows), sheet.notes) for sheet in sheets]
    return html_page("Comparison", "\n".join(body))
