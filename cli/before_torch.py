"""What torch and its threads are told by the environment, which they read when they are imported."""

from __future__ import annotations

import os

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def set_environment() -> None:
    """Choose what nobody has chosen."""
    if not any(name in os.environ for name in _WAITING):
        # Threads that wait for each other spin 300,000 times, some milliseconds, unless told otherwise. Where others
        # want the cores, the loader's workers among them, that takes most of the time (benchmarks/threads.py).
        os.environ["GOMP_SPINCOUNT"] = "1000"
    if "RANK" in os.environ:
        # Whether the losses reach every parameter depends on the images: DistributedDataParallel looks each time, and
        # warns in every process where it need not have looked.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
