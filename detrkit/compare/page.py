"""A comparison as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from detrkit.compare.sheets import Sheet

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --dim: #59636e; --line: #d0d7de; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181d; --ink: #e6e8eb; --dim: #9aa4af; --line: #3a414b; --band: #1d2127; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0.3rem; }
th { color: var(--dim); font-weight: 600; border-bottom-width: 2px; }
tbody tr:hover { background: var(--band); }
p.note { color: var(--dim); font-size: 0.87rem; margin: 0.35rem 0; max-width: 60rem; }
img { max-width: 100%; height: auto; }
"""


def make_page(sheets: Sequence[Sheet], curves: Mapping[str, bytes | None]) -> str:
    """The page. curves: PNG bytes by "light" and "dark", or None where nothing is trained."""
    body = [_picture(curves), *(_table(sheet) for sheet in sheets)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>detrkit compare</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Comparison</h1>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _picture(curves: Mapping[str, bytes | None]) -> str:
    pictures = [curves.get(theme) for theme in ("light", "dark")]
    light, dark = (f"data:image/png;base64,{base64.b64encode(p).decode()}" if p else "" for p in pictures)
    if not light:
        return ""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="AP against epochs and against minutes of training"></picture>'
    )


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in sheet.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in sheet.rows)
    notes = "\n".join(f'<p class="note">{escape(note)}</p>' for note in sheet.notes)
    return (
        f'<h2>{escape(sheet.title)}</h2>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{notes}"
    )
