"""One process or many, started by torchrun: the few things that the trainer needs to know of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """its number on this machine, which is also its GPU's"""

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add the tensor up over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, thing: Any) -> Any:
        """The first process's object, in all of them."""
        if self.world == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box)
        return box[0]

    def share_buffers(self, detector: nn.Module) -> None:
        """Give all processes the first one's buffers (running statistics)."""
        if self.world > 1:
            for buffer in detector.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, detector: nn.Module, device: torch.device) -> nn.Module:
        """The detector whose backward pass averages the gradients over the processes."""
        if self.world == 1:
            return detector
        return DistributedDataParallel(
            detector,
            device_ids=[device.index] if device.type == "cuda" else None,
            # Running statistics follow the first process; other buffers never change.
            broadcast_buffers=any(isinstance(module, _BatchNorm) for module in detector.modules()),
            # A loss that a batch does not have (no boxes at all) must not leave the others waiting.
            find_unused_parameters=True,
        )


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The tensor's mean over all processes (itself if there is one), in place."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


@contextmanager
def processes(device_name: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), and leave them at the end.

    NCCL for GPUs, gloo for the CPU. Without torchrun it is one process and there is nothing to join.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Processes()
        return
    here = Processes(rank=int(os.environ["RANK"]), world=world, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    on_gpu = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(here.local_rank)
    already = dist.is_initialized()
    if not already:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield here
    finally:
        if not already:
            dist.destroy_process_group()
