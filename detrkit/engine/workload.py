"""What a training run is going to do, worked out before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from detrkit.data.dataset import DataSource
from detrkit.engine.distributed import Processes
from detrkit.engine.learner import frozen_norms
from detrkit.engine.options import TrainOptions
from detrkit.errors import UserError
from detrkit.wording import counted

READ_WITH: dict[str, dict[str, tuple[str, ...]]] = {  # what is read with one value of another option alone
    "schedule": {"flat_cosine": ("flat_epochs", "low_epochs", "lowest"), "step": ("drop_epochs", "drop_factor")},
    "optimizer": {"sgd": ("momentum",)},
}


@dataclass(frozen=True)
class Workload:
    """The sizes of a run."""

    images: int
    """training images"""
    world: int
    share: int
    """images of one step in each process"""
    micro_batch: int
    """images that a process handles at once"""
    steps_per_epoch: int
    epochs: int
    reference_batch: int
    """the batch that the recipe's learning rate belongs to"""

    @property
    def accumulation(self) -> int:
        """Forward and backward passes in a step."""
        return -(-self.share // self.micro_batch)

    @property
    def effective_batch(self) -> int:
        """Images of one optimiser step over all processes."""
        return self.share * self.world

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def share_of_batch(options: TrainOptions, world: int) -> int:
    """Images of one step in each of `world` processes.

    Raises UserError if there are more processes than images in a batch.
    """
    if world > options.batch_size:
        raise UserError(
            f"train.batch_size is {options.batch_size}, too small for {world} processes: each needs an image"
        )
    return options.batch_size // world


def plan(options: TrainOptions, *, images: int, steps_per_epoch: int, world: int) -> Workload:
    """The workload of a run. images: of the training split; steps_per_epoch: the loader's batches."""
    share = share_of_batch(options, world)
    if images < options.batch_size:
        share = max(1, images // world)
    return Workload(
        images=images,
        world=world,
        share=share,
        micro_batch=min(share, options.micro_batch or share),
        steps_per_epoch=steps_per_epoch,
        epochs=options.epochs,
        reference_batch=options.batch_size,
    )


def planned(options: TrainOptions, source: DataSource, here: Processes) -> Workload:
    """What a training of this data is going to do."""
    loader = source.loader(
        split="train",
        batch_size=share_of_batch(options, here.world),
        epoch=0,
        seed=options.seed,
        workers=0,
        rank=here.rank,
        world=here.world,
    )
    return plan(options, images=len(source.train), steps_per_epoch=len(loader), world=here.world)


def warnings(workload: Workload, options: TrainOptions) -> list[str]:
    """What a person should know about the sizes before they wait for the result."""
    found = []
    if workload.effective_batch != workload.reference_batch:
        cause = (
            f"there is no more than {counted(workload.images, 'image')}"
            if workload.images < workload.reference_batch
            else f"{workload.reference_batch} does not divide among {workload.world} processes"
        )
        found.append(
            f"the effective batch is {workload.effective_batch}, the recipe's learning rate belongs to "
            f"{workload.reference_batch} ({cause})"
        )
    if options.warmup_steps >= workload.total_steps:
        found.append(
            f"train.warmup_steps is {options.warmup_steps}, and the training has "
            f"{counted(workload.total_steps, 'step')}: the full learning rate is never reached"
        )
    if options.patience and not options.evaluate_every:
        found.append(
            f"train.patience is {options.patience}, but with train.evaluate_every = 0 nothing ends sooner by it"
        )
    late = [epoch for epoch in options.drop_epochs if epoch >= options.epochs]
    if late and options.schedule == "step":
        found.append(f"train.drop_epochs has {late}, but training ends after epoch {options.epochs}")
    return [*found, *_unfallen(options), *_unread(options)]


def _unread(options: TrainOptions) -> list[str]:
    """Which options were given that another one leaves without effect."""
    usual, found = {field.name: field.default for field in fields(TrainOptions)}, []
    for by, read in READ_WITH.items():
        for value, keys in read.items():
            given = [key for key in keys if getattr(options, key) not in (usual[key], ())]
            if given and getattr(options, by) != value:
                them = "it" if len(given) == 1 else "them"
                found.append(
                    f'{_listed(given)} nothing with train.{by} = "{getattr(options, by)}"; only "{value}" reads {them}'
                )
    if not options.warmup_steps:
        given = [key for key in ("warmup_factor", "warmup_power") if getattr(options, key) != usual[key]]
        found += [f"{_listed(given)} nothing with train.warmup_steps = 0"] if given else []
    return found


def _listed(keys: Sequence[str]) -> str:
    return " and ".join(f"train.{key}" for key in keys) + (" changes" if len(keys) == 1 else " change")


def _unfallen(options: TrainOptions) -> list[str]:
    """What the epochs of `flat_cosine` leave no room for."""
    flat, low, epochs = options.flat_epochs, options.low_epochs, options.epochs
    if options.schedule != "flat_cosine" or (flat < epochs and flat + low <= epochs):
        return []
    if flat >= epochs:
        return [f"train.flat_epochs is {flat}, and training ends after epoch {epochs}: the rate never falls"]
    return [
        f"train.flat_epochs is {flat} and train.low_epochs {low}, more than the {epochs} epochs together: the rate "
        f"falls in one step, to the lowest for {counted(epochs - flat, 'epoch')}"
    ]


def unlike_one_batch(workload: Workload, detector: nn.Module) -> list[str]:
    """What several processes, or pieces of a batch, compute otherwise than one process with the whole batch would."""
    at_once, whole = workload.micro_batch, workload.effective_batch
    if at_once == whole:
        return []
    norms = {one for one in detector.modules() if isinstance(one, BatchNorm) and not isinstance(one, nn.SyncBatchNorm)}
    norms -= set(frozen_norms(detector))
    found = [
        f"images are padded to the largest of {at_once}, not of all {whole}: parts to which the amount of padding "
        "matters (docs/parity.md) compute a little otherwise than with the whole batch at once"
    ]
    if norms:
        found.append(
            f"{counted(len(norms), 'batch norm')} that learn take statistics of {counted(at_once, 'image')}, not of "
            f"all {whole}, and keep those of the first process: another training than with the whole batch at once. "
            'backbone.norm = "frozen" does not depend on it; "sync" joins the processes on GPUs'
        )
    return found
