"""HTML pages that need no other file: their frame and style, sortable tables, embedded pictures, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape

_NUMBER = re.compile(r"[\[>]?[+-]?\.?\d")  # what parseFloat below takes for the beginning of one

STYLE = """
:root { color-scheme: light dark; --ground: #fafafa; --card: #fff; --ink: #1f2328; --soft: #59636e; --line: #d9dce1;
  --mark: 0, 114, 178; --heat: 0, 114, 178; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181d; --card: #1d2127; --ink: #e6e8eb; --soft: #9aa4af; --line: #3a414b; --mark: 86, 180, 233; }
}
body { margin: 0 auto; padding: 1.5rem 1rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
h1, h2, p { overflow-wrap: anywhere; } p { margin: .35rem 0; max-width: 62rem; }
.soft { color: var(--soft); font-size: .9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; margin: .75rem auto 0; border-radius: 4px; }
.wide { overflow-x: auto; } picture img { width: 100%; max-width: none; min-width: 40rem; }
table { border-collapse: collapse; margin-top: .5rem; width: max-content; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; white-space: nowrap; border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: break-word; max-width: min(28rem, 50vw); }
th { color: var(--soft); font-weight: 600; }
tbody tr:hover { background: var(--ground); }
.bar { background: rgb(var(--mark)); height: .8rem; border-radius: 2px; }
.matrix td, .matrix th { padding: .2rem .6rem; }
.matrix th { white-space: normal; overflow-wrap: break-word; max-width: 8rem; }
pre { overflow-x: auto; } summary { cursor: pointer; }
a { color: inherit; } th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
@media print {  /* paper does not scroll */
  html, body { font-size: 11px; } body { padding: 0; max-width: none; } section { padding: .5rem; }
  .wide { overflow: visible; } picture img { min-width: 0; } tr, img { break-inside: avoid; }
  pre { white-space: pre-wrap; } table { width: auto; font-size: 9px; }
  th, td, .matrix td, .matrix th { padding: .1em .4em; white-space: normal; }
  td.text, .matrix th { overflow-wrap: anywhere; }
}
"""

# Numbers sort as numbers, by what stands first in a cell ("43.1 ±0.4", "[-0.1, +0.3]", ">1000"); cells
# without come last.
SORTING = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.querySelectorAll("th").forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const number = !head.classList.contains("text");
    const up = head.ariaSort ? head.ariaSort === "descending" : !number;
    const text = row => row.cells[column].textContent.trim();
    const value = row => number ? parseFloat(text(row).replace(/^[[>]/, "")) : text(row);
    const order = (a, b) => number ? (isNaN(a) - isNaN(b)) || (up ? a - b : b - a) || 0
      : (up ? 1 : -1) * a.localeCompare(b, undefined, {numeric: true});
    const rows = [...table.tBodies[0].rows].sort((a, b) => order(value(a), value(b)));
    table.tHead.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.ariaSort = up ? "ascending" : "descending";
    table.tBodies[0].append(...rows);
  }));
}
"""


def html_page(title: str, body: str) -> str:
    """A whole page of `body`, which is HTML, below its title, which is text."""
    script = f"<script>{SORTING}</script>\n" if 'class="sortable"' in body else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n{script}</body>\n</html>\n"
    )


def html_section(title: str, body: str, notes: Sequence[str] = ()) -> str:
    """A card with a title; `body` is HTML, the notes below it are text."""
    return f"<section><h2>{escape(title)}</h2>\n{body}\n{html_notes(notes)}</section>"


def html_notes(notes: Sequence[str]) -> str:
    """Each note, a text, as a paragraph in small print."""
    return "\n".join(f'<p class="soft">{escape(note)}</p>' for note in notes)


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    sortable: bool = True,
    texts: Collection[str] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """A table of texts. Columns of words are left aligned and sorted by the alphabet; dashes alone are numbers.

    Args:
        sortable: a click on a title sorts by its column
        texts: titles of columns of names, which are no numbers where they begin with one ("2-wheeler")
        links: by a cell's text, the address that it leads to
    """

    def content(cell: str) -> str:
        address = (links or {}).get(cell)
        return escape(cell) if address is None else f'<a href="{escape(address)}">{escape(cell)}</a>'

    look = [
        ' class="text"' if title in texts or not _numbers(row[at] for row in rows) else ""
        for at, title in enumerate(columns)
    ]
    titles = (f'<button type="button">{escape(name)}</button>' if sortable else escape(name) for name in columns)
    head = "".join(f"<th{one}>{title}</th>" for one, title in zip(look, titles, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{one}>{content(cell)}</td>" for one, cell in zip(look, row, strict=True)) + "</tr>"
        for row in rows
    )
    kind = ' class="sortable"' if sortable else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _numbers(cells: Iterable[str]) -> bool:
    """Whether a column is one of numbers: it has one, or nothing but dashes."""
    cells = list(cells)
    return any(map(_NUMBER.match, cells)) or all(cell == "-" for cell in cells)


def html_picture(data: bytes, alt: str, *, kind: str = "png") -> str:
    """A picture, embedded."""
    return f'<img src="{_source(data, kind)}" alt="{escape(alt)}">'


def html_chart(themes: Mapping[str, bytes], alt: str) -> str:
    """A PNG drawn twice, "light" and "dark": the reader's system chooses. A narrow screen scrolls over it."""
    return (
        '<div class="wide"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_source(themes["dark"], "png")}">'
        f"{html_picture(themes['light'], alt)}</picture></div>"
    )


def _source(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
