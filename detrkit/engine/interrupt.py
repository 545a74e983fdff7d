"""Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal: finish the step, write a checkpoint, and say how to go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SAME_REQUEST = 3.0

Handler = Callable[[int, FrameType | None], Any] | int | None


class StopRequest:
    """Whether somebody asked for the end, and by what signal."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.since = 0.0


def stop_signals() -> list[signal.Signals]:
    """Those that ask for the end, on Windows SIGINT and SIGTERM alone.

    SIGUSR1 is what a job on a cluster asks for ahead of its end (SLURM's `--signal=USR1@120`); SIGHUP comes where a
    terminal is closed or ssh drops. Under `nohup` that one is ignored from the beginning, and is to stay so.
    """
    asking = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        asking.append(signal.SIGUSR1)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            asking.append(signal.SIGHUP)
    return asking


@contextmanager
def stop_on_signals(*, tells: bool = False) -> Iterator[StopRequest]:
    """Within the block the first of `stop_signals` only sets `reason`; another one acts as usual.

    tells: whether the first is answered on stderr, as a step or an evaluation may take minutes to end.

    Signals that follow within `SAME_REQUEST` seconds belong to the first: Ctrl-C under torchrun arrives from the
    terminal and from torchrun.
    """
    request = StopRequest()
    owner = os.getpid()
    before: dict[signal.Signals, Handler] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A loader's worker inherits this handler. Ctrl-C reaches it too, but its owner still needs it.
            if number == signal.SIGTERM:
                os._exit(0)
            return
        if request.reason is None:
            request.reason, request.since = signal.Signals(number).name, time.monotonic()
            if tells:
                answer = f"\n{request.reason}: ends and saves after what it is at; once more ends it at once\n"
                with suppress(OSError):  # there may be nobody to read it; and `print` may have been broken off just now
                    os.write(2, answer.encode())
        elif time.monotonic() - request.since > SAME_REQUEST:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    try:
        for each in stop_signals():
            before[each] = signal.signal(each, handle)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield request
        return
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
