"""What torch and its threads are told by the environment, which they read when they are imported."""

from __future__ import annotations

import os


def set_environment() -> None:
    """Choose what nobody has chosen."""
    if "RANK" in os.environ:
        # Whether the losses reach every parameter depends on the images: DistributedDataParallel looks each time, and
        # warns in every process where it need not have looked.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
