"""One process at a time writes into a run's folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from detrkit.errors import UserError

if sys.platform != "win32":  # Windows has no such lock: there two trainings must not share a folder
    import fcntl

LOCK = ".lock"
HANDED_OVER = "DETRKIT_LOCK"  # the descriptor of a lock that a process was started with


def take_lock(folder: Path) -> IO | None:
    """The folder's lock file, open and locked until it is closed; None if another process has it."""
    file = (folder / LOCK).open("w")
    if sys.platform == "win32":
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks: two trainings there are not told apart
        pass
    # A loader's worker may outlive a training that was killed, and must not hold the run meanwhile.
    os.register_at_fork(after_in_child=file.close)
    return file


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run while it is trained; the lock that `compare` hands over with the command will do.

    Raises UserError if another process trains it.
    """
    file = _handed_over(folder) or take_lock(folder)
    if file is None:
        raise UserError(f"{folder} is being trained by another process; wait for it, or end it first")
    with file:
        yield


def _handed_over(folder: Path) -> IO | None:
    number = os.environ.get(HANDED_OVER, "")
    try:
        if not number.isdecimal() or not os.path.samestat(os.fstat(int(number)), (folder / LOCK).stat()):
            return None
    except OSError:
        return None
    os.set_inheritable(int(number), False)
    file = os.fdopen(int(number), "w")
    os.register_at_fork(after_in_child=file.close)
    return file
