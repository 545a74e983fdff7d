"""Images that cannot be read, in whose place a training takes others."""

from __future__ import annotations

from collections.abc import Sequence

from detrkit.engine.progress import Reporter
from detrkit.wording import counted


class SkippedImages:
    """Names each such image when it is first met; how many there were is said at the end."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._met: dict[str, None] = {}  # in the order met

    def note(self, messages: Sequence[str]) -> None:
        """Say what is wrong with images of a batch, those that are new."""
        for message in dict.fromkeys(messages):
            if message not in self._met:
                self._met[message] = None
                self.reporter.warn(f"{message}; another image stands in its place")

    def tell(self) -> None:
        """Say how many there were, if any, and which the first are."""
        if not self._met:
            return
        first = "; ".join(list(self._met)[:3])
        more = f"; and {len(self._met) - 3} more, named above" if len(self._met) > 3 else ""
        self.reporter.warn(
            f"{counted(len(self._met), 'image')} could not be read, and others stood in their place: {first}{more}"
        )
