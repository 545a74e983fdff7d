"""Pictures that cannot be drawn end nothing: each is told, and the others are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from detrkit.errors import UserError

T = TypeVar("T")


class Faults(list[str]):
    """What could not be drawn and why, a line for each."""

    def draw(self, what: str, draw: Callable[[], T]) -> T | None:
        """What `draw` gives; None where it fails, which is noted under the name `what`."""
        try:
            return draw()
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.append(f"{what} could not be drawn: {' '.join(reason.split())}")
            return None
