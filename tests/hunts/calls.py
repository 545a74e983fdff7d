"""The calls of a process that are about files below a folder, as Python tells of them before it makes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

CALLS = ("os.rename", "os.mkdir", "os.link", "os.truncate", "os.chmod")
REMOVES = ("os.remove", "os.rmdir")


def watch_calls(below: Path, act: Callable[[int, str], None], *, only_writes: bool = False) -> None:
    """From now on, for good, call `act` with a number, from 1, and the path before each call of this process.

    What `act` raises is what the call raises. only_writes: neither what reads nor what removes.
    """
    count, busy = 0, False

    def heard(event: str, arguments: tuple) -> None:
        nonlocal count, busy
        if busy or not (event in CALLS or event == "open" or (event in REMOVES and not only_writes)):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if str(below) not in path or (only_writes and event == "open" and not _writes(*arguments[1:3])):
            return
        busy = True  # what `act` does is not counted
        count += 1
        try:
            act(count, path)
        finally:
            busy = False

    sys.addaudithook(heard)


def _writes(mode: str | None, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else any(c in mode for c in "wax+")
