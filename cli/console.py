"""Where the verbs print: a terminal, a pipe or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich import console as rich_console
from rich.segment import Segment

from detrkit.wording import visible

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.progress import Progress

T = TypeVar("T")
WIDTH_OF_FILES = 1000  # more than any table has; rich by itself cuts at 80


class Console(rich_console.Console):
    """rich's console for words of others: brackets in names and messages are brackets, control characters are shown.

    What is to have a style is a `Text`, or comes with `style`.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


def open_console(**options: Any) -> Console:
    """Standard output. A pipe or a file has no width, so nothing is folded or cut there. options: of rich's console."""
    console = Console(**options)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OF_FILES)
    return console


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """What a person should know about the run that was opened."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def open_progress(console: rich_console.Console) -> Progress:
    """Bars that are gone when they are done; none in a pipe or a file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def progress_bar(console: rich_console.Console, words: str, total: int | None) -> Iterator[Callable[[], None]]:
    """One such bar while it lasts; gives what to call at each step."""
    with open_progress(console) as bars:
        task = bars.add_task(words, total=total)
        yield lambda: bars.advance(task)


def tracked(console: rich_console.Console, things: Iterable[T], words: str, total: int | None = None) -> Iterator[T]:
    """The same one by one, with such a bar."""
    with progress_bar(console, words, total) as advance:
        for thing in things:
            yield thing
            advance()
