"""Pictures with captions on one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from detrkit.drawing.page import html_notes, html_page, html_picture, html_section, html_table


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
    """A page: facts, a table of detections, and a card for each picture, embedded."""
    cards = [
        html_section(picture.title, f"<p>{escape(picture.caption)}</p>{html_picture(picture.png, picture.title)}")
        for picture in pictures
    ]
    table = html_section("Detections", html_table(columns, rows, texts=["class"]))
    return html_page(title, "\n".join([html_notes(facts), table, *cards]))
