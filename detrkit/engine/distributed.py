"""One process or many, started by torch's launcher: the few things that the trainer needs to know of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detrkit.errors import UserError

_OTHER_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}
"""By what each sets to the number of processes that it has started."""


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

    def in_first(self, act: Callable[[], object]) -> None:
        """Do something in the first process; all of them raise what goes wrong with it."""
        fault: Exception | None = None
        if self.is_first:
            try:
                act()
            except Exception as error:
                fault = error
        fault = self.from_first(fault)
        if fault is not None:
            raise fault

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def join(self, module: nn.Module) -> nn.Module:
        """The module with the first process's weights, and gradients that are averaged while they are computed.

        What its forward pass returns has to be the losses: a parameter that they do not reach counts as zero in this
        process, and stays without a gradient if no process reaches it, as in a single one.
        """
        if self.world == 1:
            return module
        # Gradients of kernels of one pixel come from oneDNN with other strides, for the same order of numbers.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        with warnings.catch_warnings(
            action="ignore", category=FutureWarning
        ):  # torch 2.14 calls `broadcast_buffers` old
            return DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )


def accumulating(module: nn.Module, *, more: bool) -> AbstractContextManager:
    """Within it a joined module's gradients are added up in each process, and not averaged yet if more are to come."""
    return module.no_sync() if more and isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def processes(device_name: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), and leave them at the end.

    NCCL between GPUs, gloo between CPUs. Where the caller has joined them (`init_process_group`), they stay joined.
    Without either it is one process and there is nothing to join.
    Raises UserError if there are fewer GPUs than processes, or what is said of them is not whole.
    """
    already = dist.is_available() and dist.is_initialized()
    here = _joined() if already else _asked()
    world = here.world
    if world == 1:
        yield here
        return
    on_gpu = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_gpu:
        if ":" in device_name or here.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{world} processes and train.device={device_name!r}: each process needs a GPU of its own, and this "
                f"machine has {torch.cuda.device_count()}. Start fewer processes; leave the device at 'auto' or 'cuda'"
            )
        if already and "cpu:" not in dist.get_backend_config():
            raise UserError(
                "these processes were joined for their GPUs alone, and a training agrees on numbers on the CPU, too: "
                'init_process_group("cpu:gloo,cuda:nccl")'
            )
        torch.cuda.set_device(here.local_rank)
    if not already:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield here
    finally:
        if not already:
            dist.destroy_process_group()


def _joined() -> Processes:
    """This process among those that the caller has joined."""
    rank, count = dist.get_rank(), torch.cuda.device_count()
    local = os.environ.get("LOCAL_RANK", "")
    return Processes(rank, dist.get_world_size(), int(local) if local.isdecimal() else rank % max(1, count))


def _asked() -> Processes:
    """This process among those that the environment speaks of. One that is left alone would train by itself."""
    said = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if os.environ.get(name)}
    if wrong := [f"{name}={value!r}" for name, value in said.items() if not value.isdecimal()]:
        raise UserError(f"{', '.join(wrong)} in the environment: should be a count, as torchrun sets it")
    numbers = {name: int(value) for name, value in said.items()}
    world, rank = numbers.get("WORLD_SIZE", 1), numbers.get("RANK", 0)
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT") if world > 1 else ("WORLD_SIZE",) if rank else ()
    if missing := [name for name in needed if not os.environ.get(name)]:
        one = "WORLD_SIZE" if world > 1 else "RANK"
        raise UserError(
            f"{one}={said[one]} in the environment says that several processes train together, and what else torchrun "
            f"sets is not there: {', '.join(missing)}. For one process alone, unset {one}"
        )
    if world > 1 and rank >= world:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world} in the environment: the ranks are 0 to {world - 1}")
    return Processes(rank, world, numbers.get("LOCAL_RANK", 0)) if world > 1 else Processes()


def alone_among(here: Processes) -> list[str]:
    """What to know where a launcher that detrkit does not read has started several processes: each trains by itself."""
    for name, launcher in _OTHER_LAUNCHERS.items():
        count = os.environ.get(name, "")
        if here.world == 1 and count.isdecimal() and int(count) > 1:
            return [
                f"{launcher} started {count} processes ({name}), and each trains by itself. To train together, have it "
                "start one on each machine, `torchrun --nnodes ... -m detrkit train ...`"
            ]
    return []
