"""Where the verbs print: a terminal, a pipe or a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import console as rich_console
from rich.segment import Segment

from detrkit.wording import visible

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType

WIDTH_OF_FILES = 1000  # more than any table has; rich by itself cuts at 80


class Console(rich_console.Console):
    """rich's console, which shows what names and messages hold of control characters, rather than have it obeyed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


def open_console() -> Console:
    """Standard output. A pipe or a file has no width, so nothing is folded or cut there."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OF_FILES)
    return console


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """What a person should know about the run that was opened."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
