"""Pictures with captions on one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #fafafa; --card: #fff; --ink: #1d1d1f; --soft: #5c5c66; --line: #d9d9de; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #17181c; --card: #212329; --ink: #ececf0; --soft: #a5a6b0; --line: #3a3c45; }
}
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
p { margin: .25rem 0; max-width: 65rem; } .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; margin: .75rem auto 0; border-radius: 4px; background: #fff; }
table { border-collapse: collapse; margin-top: .5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem 1.25rem .15rem 0; border-bottom: 1px solid var(--line); }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG under the name of its file, with what it shows and how it is read."""

    file: str
    title: str
    caption: str
    png: bytes


def picture_page(
    title: str, facts: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]], pictures: Sequence[Picture]
) -> str:
    """A page: facts, a table, and a card for each picture, embedded; light or dark as the reader's system is."""
    lines = "".join(f'<p class="soft">{escape(fact)}</p>' for fact in facts)
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    cards = "".join(_card(picture) for picture in pictures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>{lines}"
        f"<section><h2>Detections</h2><table><tr>{head}</tr>{body}</table></section>\n{cards}</body></html>\n"
    )


def _card(picture: Picture) -> str:
    source = "data:image/png;base64," + base64.b64encode(picture.png).decode()
    return (
        f"<section><h2>{escape(picture.title)}</h2><p>{escape(picture.caption)}</p>"
        f'<img alt="{escape(picture.title)}" src="{source}"></section>\n'
    )
