"""Which device and which number format a run uses."""

from __future__ import annotations

import torch

from detrkit.errors import UserError


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
    """`fp32` or `bf16` for what `train.precision` says.

    Raises UserError if bf16 is asked for where it cannot be had.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if name == "auto":
        return "bf16" if has_bf16 else "fp32"
    if name == "bf16" and not has_bf16:
        raise UserError(f"precision is 'bf16', which needs a CUDA GPU that has it, not {device}; use 'auto'")
    return name
