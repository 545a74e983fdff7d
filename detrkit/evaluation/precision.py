"""Which device and which number format a run uses."""

from __future__ import annotations

import math
import time
from functools import lru_cache, partial
from itertools import pairwise, product

import torch
import torch.nn.functional as F

from detrkit.errors import UserError
from detrkit.onednn import linear

WORTHWHILE = 1.25  # less would be lost to casts
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `train.device` means for the process with this local rank.

    Raises UserError if there is no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if found is None else found.type
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device is {name!r}; accepted are auto, cpu, cuda, cuda:1, mps, ...") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device is {name!r}, but PyTorch finds no CUDA GPU here; accepted: auto, cpu")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"device is {device}, but there are {torch.cuda.device_count()} GPUs (from 0)")
    elif device.type != "cpu":
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type != device.type:
            there = "cpu" if found is None else f"cpu, {found.type}"
            raise UserError(f"device is {name!r}, but PyTorch finds none here; accepted: auto, {there}")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16` for what `train.precision` says.

    "auto" takes bf16 on a CUDA GPU that has it, and on a CPU that has it where products were measured to gain by it. It
    never takes fp16, whose numbers end at 65504.

    Raises UserError for another name, or if half precision is asked for where it cannot be had.
    """
    if name not in ("auto", "fp32", *HALF):
        raise UserError(f"precision is {name!r}; accepted are auto, fp32, bf16 and fp16")
    if not has_precision(name, device):
        needed = {
            "bf16": "a CUDA GPU that has it or a processor with AVX512_BF16 or AMX",
            "fp16": "a GPU",
        }
        raise UserError(f"precision is {name!r}, which needs {needed[name]}, and {device} here is none; use 'auto'")
    if name != "auto":
        return name
    gains = has_bf16(device) and (device.type == "cuda" or bf16_gain() >= WORTHWHILE)
    return "bf16" if gains else "fp32"


def describe_precision(name: str, device: torch.device) -> str:
    """What `choose_precision` chose, and what "auto" measured, in a few words."""
    chosen = choose_precision(name, device)
    if name == "auto" and device.type == "cuda" and not has_bf16(device):
        return f"{chosen}: this GPU has no bf16; train.precision=fp16 may be much faster"
    if name != "auto" or device.type != "cpu" or not has_bf16(device):
        return chosen
    return f"{chosen}: products in bf16 are {bf16_gain():.1f} times as fast as in fp32 here"


def has_precision(name: str, device: torch.device) -> bool:
    """Whether a device computes in this precision by instructions of its own; "auto" and "fp32" every device does."""
    return {"bf16": has_bf16, "fp16": has_fp16}[name](device) if name in HALF else True


def has_fp16(device: torch.device) -> bool:
    """Whether a device is made for float16: every GPU. On a CPU a step takes more than ten times as long in it."""
    return device.type != "cpu"


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # every GPU emulates it, slowly
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@lru_cache(maxsize=1)
def bf16_gain() -> float:
    """How many times as fast as in float32 this CPU makes a convolution and a product of matrices in bfloat16.

    Both are of a detector's sizes, and take turns; the shortest of a few times counts, as others may hold one up. It
    takes a twentieth of a second on a core, once in a process.
    """
    best: dict[torch.dtype, tuple[float, ...]]
    best = dict.fromkeys((torch.float32, torch.bfloat16), (math.inf, math.inf))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        maps = torch.ones(1, 128, 40, 40).contiguous(memory_format=torch.channels_last)
        kernels, rows, matrix = torch.ones(128, 128, 3, 3), torch.ones(400, 256), torch.ones(1024, 256)
        for _, dtype in product(range(6), best):
            x, w, a, b = (tensor.to(dtype) for tensor in (maps, kernels, rows, matrix))
            times = [time.perf_counter()]
            for run in (partial(F.conv2d, x, w, padding=1), partial(linear, a, b)):
                run()
                times.append(time.perf_counter())
            shortest = zip(best[dtype], pairwise(times), strict=True)
            best[dtype] = tuple(min(before, end - begin) for before, (begin, end) in shortest)
    return sum(best[torch.float32]) / sum(best[torch.bfloat16])
