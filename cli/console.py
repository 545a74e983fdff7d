"""Where the verbs print: a terminal, a pipe or a file."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

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


class _Lasting:
    """A file whose writing goes on where nobody reads it any more: its terminal is closed, or its pipe's reader gone.

    From then on it is the null device, for whoever else writes to it, too.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with self._kept_open():
            return self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept_open():
            self._file.flush()

    @contextmanager
    def _kept_open(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)


def lasting_output() -> IO[str] | None:
    """Standard output for what takes hours, and is written down elsewhere: it goes on when nobody reads it any more.

    None where there is none.
    """
    return cast("IO[str]", _Lasting(sys.stdout)) if sys.stdout else None


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
