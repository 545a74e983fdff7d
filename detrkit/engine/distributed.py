"""One process or many, started by torchrun: the few things that the trainer needs to know of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detrkit.errors import UserError


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

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes.

        A parameter that has a gradient in some processes counts as zero in the others (a loss without objects
        may not reach it); one that has none anywhere stays without, as in a single process. That is why this is
        not `DistributedDataParallel`, which looks for unused parameters behind the detector's outputs, not
        behind the loss, and fails where the loss leaves an output out.
        """
        if self.world == 1:
            return
        # On the CPU, where this is known without waiting for the GPU.
        used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        gradients = []
        for parameter, is_used in zip(parameters, used.tolist(), strict=True):
            if is_used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            parts = (flat / self.world).split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])


def _buckets(tensors: Sequence[Tensor], elements: int = 2**24) -> Iterator[list[Tensor]]:
    """Runs of tensors of one type, each up to so many elements (64 MB), or a single larger tensor."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > elements or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def processes(device_name: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), and leave them at the end.

    NCCL between GPUs, gloo between CPUs. Without torchrun it is one process and there is nothing to join.
    Raises UserError if there are fewer GPUs than processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Processes()
        return
    here = Processes(rank=int(os.environ["RANK"]), world=world, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    on_gpu = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_gpu:
        if ":" in device_name or here.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{world} processes and train.device={device_name!r}: each process needs a GPU of its own, and this "
                f"machine has {torch.cuda.device_count()}. Start fewer processes; leave the device at 'auto' or 'cuda'"
            )
        torch.cuda.set_device(here.local_rank)
    already = dist.is_initialized()
    if not already:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield here
    finally:
        if not already:
            dist.destroy_process_group()
