"""Bringing a step's numbers to the host without making the host wait for the device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from detrkit.layers import Arriving


@dataclass(frozen=True)
class Reading:
    """The numbers of one step."""

    step: int
    values: dict[str, float]


class Readback:
    """Hands each step's numbers over one step later on a GPU (the copy is then long done), at once on a CPU."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, tuple[str, ...], Arriving]] = deque()

    def push(self, step: int, names: tuple[str, ...], values: Tensor) -> list[Reading]:
        """Start to copy the numbers of `step`.

        Args:
            values: [len(names)] float32, on any device

        Returns:
            the readings that are ready, in order
        """
        self._waiting.append((step, names, Arriving(values)))
        return self._take(keep=1 if values.is_cuda else 0)

    def flush(self) -> list[Reading]:
        """Wait for all that was pushed, and return it."""
        return self._take(keep=0)

    def _take(self, keep: int) -> list[Reading]:
        ready = []
        while len(self._waiting) > keep:
            step, names, values = self._waiting.popleft()
            ready.append(Reading(step, dict(zip(names, values.read().tolist(), strict=True))))
        return ready
