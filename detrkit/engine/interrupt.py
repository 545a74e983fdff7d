"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, and say how to go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

SAME_REQUEST = 3.0


class StopRequest:
    """Whether somebody asked for the end, and by what signal."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.since = 0.0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM only sets `reason`; another one acts as usual.

    Signals that follow within `SAME_REQUEST` seconds belong to the first: Ctrl-C under torchrun arrives from the
    terminal and from torchrun.
    """
    request = StopRequest()
    owner = os.getpid()
    watched = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, object] = {}

    def handle(number: int, frame: object) -> None:
        if os.getpid() != owner:
            # A loader's worker inherits this handler. Ctrl-C reaches it too, but its owner still needs it.
            if number == signal.SIGTERM:
                os._exit(0)
            return
        if request.reason is None:
            request.reason, request.since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - request.since > SAME_REQUEST:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        for number in watched:
            before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
