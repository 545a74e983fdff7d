"""Bringing a step's numbers to the host without making the host wait for the device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """The numbers of one step."""

    step: int
    values: dict[str, float]


class Readback:
    """Hands each step's numbers over one step later on a GPU (the copy is then long done), at once on a CPU."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, tuple[str, ...], Tensor, torch.cuda.Event | None]] = deque()

    def push(self, step: int, names: tuple[str, ...], values: Tensor) -> list[Reading]:
        """Start to copy the numbers of `step`.

        Args:
            values: [len(names)] float32, on any device

        Returns:
            the readings that are ready, in order
        """
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            values = host
        self._waiting.append((step, names, values, event))
        return self._take(keep=0 if event is None else 1)

    def flush(self) -> list[Reading]:
        """Wait for all that was pushed, and return it."""
        return self._take(keep=0)

    def _take(self, keep: int) -> list[Reading]:
        ready = []
        while len(self._waiting) > keep:
            step, names, values, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            ready.append(Reading(step, dict(zip(names, values.tolist(), strict=True))))
        return ready
