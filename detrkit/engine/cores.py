"""How many cores there are to work on, and how many processes load images on them."""

from __future__ import annotations

import os

from detrkit.engine.options import TrainOptions


def available_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(options: TrainOptions, world: int) -> int:
    """Loader processes of one training process: `train.workers`, or by the cores, one of which computes."""
    if options.workers is not None:
        return options.workers
    return max(1, min(8, available_cores() // world - 1))
