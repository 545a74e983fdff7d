"""How the C library hands out memory, where it is glibc and the environment does not say."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def keep_one_heap() -> None:
    """Let all threads of this process share a heap.

    A worker hands its batches over in a thread, whose own heap would grow in pieces beside the first
    (benchmarks/loader_memory.py).
    """
    _tell({_ARENA_MAX: 1}, unless=["MALLOC_ARENA_MAX"])


def keep_freed_memory() -> None:
    """Let this process keep what is freed, to the most that it ever used.

    Each step of a training asks for what the one before has freed. What went back to the system in between is paid for
    again, page by page, in zeros (benchmarks/memory_growth.py).
    """
    _tell(
        {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1},
        unless=["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"],
    )


def _tell(options: dict[int, int], *, unless: list[str]) -> None:
    if sys.platform == "win32":  # a process there has no library of itself
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in unless):
        for option, value in options.items():
            mallopt(option, value)
