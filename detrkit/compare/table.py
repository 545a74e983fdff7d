"""A table of texts, the texts of its numbers, and its order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from detrkit.compare.spread import Spread
from detrkit.errors import UserError
from detrkit.recipe.problems import nearest

NOTHING = "-"


@dataclass(frozen=True)
class Sheet:
    """One table.

    columns: titles; the first is left aligned, the others right.
    notes: what is to be read below it.
    places: what cells that are the text of a key stand for, as a folder or a file: links, where there can be some.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where there is none."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign, or a dash."""
    return NOTHING if value is None else f"{value:+.{digits}f}"


def spread(value: Spread | None, digits: int = 1) -> str:
    """The mean and, with several seeds, the deviation: "43.1 ±0.4"."""
    if value is None:
        return NOTHING
    return number(value.mean, digits) + ("" if value.deviation is None else f" ±{value.deviation:.{digits}f}")


def order_of(sheets: Sequence[Sheet], column: str) -> list[str]:
    """The rows' names by a column of the first table that has it: the highest number first, texts by the alphabet.

    Cells without a number come last where others have one. Rows that the table has not are not among them.

    Raises UserError if no table has such a column.
    """
    titles = list(dict.fromkeys(title for sheet in sheets for title in sheet.columns))
    fits = [title for title in titles if title == column] or [t for t in titles if t.lower() == column.lower()]
    if not fits:
        raise UserError(f"--sort {column} is no column{nearest(column, titles)}; there are {', '.join(titles)}")
    sheet = next(sheet for sheet in sheets if fits[0] in sheet.columns)
    at = sheet.columns.index(fits[0])
    values = [(_leading(row[at]), row) for row in sheet.rows]
    if not at or all(value is None for value, _ in values):  # the first are names: "2_no_sdg" is no number
        return [row[0] for _, row in sorted(values, key=lambda one: one[1][at])]
    return [row[0] for value, row in sorted(values, key=lambda one: (one[0] is None, -(one[0] or 0.0)))]


def _leading(cell: str) -> float | None:
    """The number that a cell begins with, that of an interval being its lower end and that of ">1000" the bound."""
    found = re.match(r"[\[>]?([+-]?\d+(\.\d+)?)", cell)
    return float(found[1]) if found else None
