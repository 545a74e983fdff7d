"""What the machine is, and its rate of matrix products."""

from __future__ import annotations

import os
import platform
from statistics import median

import torch
import torchvision
from gpu.setting import Setting

from detrkit.compare.timing import device_name


def machine(setting: Setting) -> None:
    """Card, versions, and multiply-adds a second of a large bf16 matrix product on random numbers."""
    memory = torch.cuda.get_device_properties(setting.device).total_memory / 2**30 if setting.on_gpu else None
    setting.add(
        "machine",
        device=device_name(setting.device),
        memory_gib=memory and round(memory),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        cores=os.cpu_count(),
        tiny=setting.tiny,
    )
    setting.add("matrix rate", tera_multiply_adds=round(matrix_rate(setting) / 1e12, 4), type="bf16")


def matrix_rate(setting: Setting) -> float:
    """Multiply-adds a second of bf16 matrix products."""
    rows = 256 if setting.tiny else 8192
    a, b = (torch.randn(rows, rows, device=setting.device).bfloat16() for _ in range(2))
    return 1000 * rows**3 / median(setting.times(lambda: a @ b, warmup=10, rounds=20))
