"""Tables of a comparison or a benchmark in a terminal, however narrow, or in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from detrkit.compare.table import Sheet


def print_sheet(console: Console, sheet: Sheet) -> None:
    """A table with its notes below it.

    In a terminal that is too narrow, titles stand in several lines; if that does not do, rows are numbered, their names
    are listed first, and columns that have no room follow in further tables. In a pipe a table is as wide as it needs
    to be.
    """
    from rich.text import Text

    console.print()
    for table in _tables(console, sheet):
        console.print(table, soft_wrap=isinstance(table, Text))  # a name stays in one piece
    for note in sheet.notes:
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)


def _tables(console: Console, sheet: Sheet) -> Iterator[Table | Text]:
    from rich.text import Text

    def fits(table: Table) -> bool:
        needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        return needed <= console.width

    for stacked in (False, True):
        table = _table(sheet, stacked=stacked)
        if not console.is_terminal or fits(table):
            yield table
            return
    yield Text(sheet.title, style="bold")
    for number, row in enumerate(sheet.rows, start=1):
        yield Text(f"{number:>3}  {row[0]}")
    for columns in _groups(len(sheet.columns), lambda columns: fits(_part(sheet, columns))):
        yield _part(sheet, columns)


def _groups(count: int, fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """The columns after the first, in order, in as few groups as there have to be: as many in each as fit."""
    groups: list[list[int]] = []
    for column in range(1, count):
        if groups and fits([*groups[-1], column]):
            groups[-1].append(column)
        else:
            groups.append([column])
    return groups


def _part(sheet: Sheet, columns: Sequence[int]) -> Table:
    """The rows' numbers and some columns."""
    titles = (sheet.columns[0], *(sheet.columns[at] for at in columns))
    rows = ((f"{number:>3}", *(row[at] for at in columns)) for number, row in enumerate(sheet.rows, start=1))
    return _table(replace(sheet, title="", columns=titles, rows=tuple(rows)), stacked=True)


def _table(sheet: Sheet, *, stacked: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=sheet.title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, title in enumerate(sheet.columns):
        table.add_column(
            title.replace(" ", "\n") if stacked else title, justify="right" if index else "left", no_wrap=True
        )
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table
