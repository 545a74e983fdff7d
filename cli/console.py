"""Where the verbs print their tables: a terminal, a pipe or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

WIDTH_OF_FILES = 1000  # more than any table has; rich by itself cuts at 80


def open_console() -> Console:
    """Standard output. A pipe or a file has no width, so nothing is folded or cut there."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OF_FILES)
    return console


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """What a person should know about the run that was opened."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
