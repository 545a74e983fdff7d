"""The checkpoint that a training writes as it goes, and how another start of it goes back to one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from detrkit.engine.ema import MovingAverage
from detrkit.engine.loss_scale import LossScale
from detrkit.engine.meter import Meter
from detrkit.engine.optimiser import restore_optimiser
from detrkit.engine.options import TrainOptions
from detrkit.engine.soundness import NotFiniteError, Soundness, may_help
from detrkit.engine.workload import Workload
from detrkit.errors import CheckpointError
from detrkit.runs.checkpoint import (
    AVERAGE,
    STATE,
    WEIGHTS,
    copy_checkpoint,
    find_folder,
    load_exactly,
    read_weights,
    remove_leftovers,
    write_checkpoint,
)
from detrkit.runs.history import read_metrics
from detrkit.runs.run_folder import RunFolder
from detrkit.runs.state import read_trainer_state, way_out
from detrkit.wording import counted, first_of, typed


@dataclass
class Position:
    """Where a run stands: all of it goes into the checkpoint."""

    step: int = 0
    """optimiser steps done"""
    evaluated: int = 0
    """the step of the last evaluation"""
    best_ap: float | None = None
    best_step: int = 0
    waited: int = 0
    """evaluations since the best one, however many epochs lie between them"""
    minutes: float = 0.0
    """spent by all starts of the run"""


class Checkpoints:
    """Keeps the state of a training in its run's folder, in the first process alone.

    Args:
        run: the folder
        is_first: whether this is the first process
        options, precision, workload: of the training
        detector, criterion, average, optimiser, scale, meter: what has a state
        metadata: strings that go into the weights' files
    """

    def __init__(
        self,
        *,
        run: RunFolder,
        is_first: bool,
        options: TrainOptions,
        precision: str,
        workload: Workload,
        detector: nn.Module,
        criterion: nn.Module,
        average: MovingAverage | None,
        optimiser: torch.optim.Optimizer,
        scale: LossScale,
        meter: Meter,
        metadata: Mapping[str, str],
    ) -> None:
        self.run, self.is_first = run, is_first
        self.options, self.precision, self.workload = options, precision, workload
        self.metadata = dict(metadata)
        self.detector, self.criterion, self.average = detector, criterion, average
        self.optimiser, self.scale, self.meter = optimiser, scale, meter
        self._soundness = Soundness(detector, average, optimiser)
        self.saved_step = 0  # after which `last` was written
        self._saved_at = time.monotonic()

    def are_due(self, step: int) -> bool:
        """Whether one is to be written after so many steps, within an epoch."""
        steps, minutes = self.options.checkpoint_steps, self.options.checkpoint_minutes
        return bool((steps and step % steps == 0) or (minutes and time.monotonic() - self._saved_at >= 60 * minutes))

    def faults(self) -> list[str]:
        """The names of the weights, averages and moments that are not finite; waits for the device."""
        return self._soundness.faults()

    def save(self, at: Position, *, minutes: float) -> None:
        """Write `last`, for a position after so many minutes of all starts.

        Raises NotFiniteError, and writes nothing, if an update has left weights that are not finite.
        """
        self._saved_at = time.monotonic()
        if not self.is_first:
            return
        if faults := self.faults():
            raise NotFiniteError(
                f"the training has diverged: after step {at.step} of {self.workload.total_steps} "
                f"{first_of(faults)} are not finite, though loss and gradient were. Nothing of that is saved. "
                f"{self.left()}. {may_help(self.precision)}"
            )
        write_checkpoint(
            self.run.last,
            weights=self.detector.state_dict(),
            average=self.average.module.state_dict() if self.average is not None else None,
            state={
                "position": {**vars(at), "minutes": minutes},
                "meter": self.meter.state(),
                "metrics_size": self.run.metrics_size(),
                "optimiser": self.optimiser.state_dict(),
                "loss_scale": self.scale.state(),
                "criterion": self.criterion.state_dict(),
                "average_updates": self.average.updates if self.average is not None else 0,
                "steps_per_epoch": self.workload.steps_per_epoch,
            },
            metadata={**self.metadata, "step": str(at.step)},
        )
        self.saved_step = at.step

    def keep_best(self) -> None:
        """Make `best` what `last` is."""
        if self.is_first:
            copy_checkpoint(self.run.last, self.run.best)

    def left(self) -> str:
        """What there is beside a state that cannot be saved."""
        if find_folder(self.run.last) is None:
            return "There is no checkpoint yet"
        return f"{self.run.last} is of step {self.saved_step} and stays as it was"

    def restore(self, folder: Path | None = None) -> Position:
        """Go back to a checkpoint's folder, by default the run's last; to where the run stood there.

        Raises:
            CheckpointError: there is none, it is damaged, or it does not belong to this recipe and data
        """
        folder = folder or find_folder(self.run.last)
        if folder is None:
            raise CheckpointError(f"{self.run.path} holds no checkpoint yet, so there is nothing to resume")
        state = read_trainer_state(folder)
        position = Position(**state.position)
        if "waited" not in state.position:  # of a run that counted steps
            position.waited = _evaluations(self.run, position.best_step, position.evaluated)
        before, now = state.steps_per_epoch, self.workload.steps_per_epoch
        if before != now:  # rates, records and random numbers all go by the step
            raise CheckpointError(
                f"{folder} is of a run whose epochs have {before} steps, but an epoch has {now} now, of "
                f"{counted(self.workload.effective_batch, 'image')} by {counted(self.workload.world, 'process')}: the "
                "batch size, the data or the number of processes has changed. Processes among which train.batch_size "
                "divides take the same batch, as does train.micro_batch in smaller pieces; a new run begins from these "
                f"weights with train.init_from={typed(self.run.path)}"
            )
        load_exactly(self.detector, read_weights(folder / WEIGHTS)[0], folder / WEIGHTS)
        if state.criterion is not None:
            try:
                self.criterion.load_state_dict(dict(state.criterion))
            except RuntimeError as error:
                raise CheckpointError(f"{folder / STATE} is of another criterion: {error}") from None
        restore_optimiser(self.optimiser, state.names, state.moments, folder)
        if self.average is not None:
            path = folder / (AVERAGE if (folder / AVERAGE).is_file() else WEIGHTS)
            load_exactly(self.average.module, read_weights(path)[0], path)
            self.average.updates = state.average_updates
        if faults := self.faults():
            raise CheckpointError(
                f"{folder} cannot be gone on from: {first_of(faults)} are not finite. {way_out(folder)}"
            )
        self.saved_step = position.step
        self.scale.load_state(state.loss_scale)
        self.meter.load_state(state.meter)
        if self.is_first:
            if find_folder(self.run.last) != folder:
                copy_checkpoint(folder, self.run.last)  # or the next resume would go on from what is left behind here
            self.run.rewind_metrics(state.metrics_size)
            if find_folder(self.run.best) != folder and position.best_step == position.evaluated == position.step > 0:
                copy_checkpoint(folder, self.run.best)  # a kill may have come between the two
            for kept in (self.run.last, self.run.best):
                remove_leftovers(kept)  # a training that was over writes no more, which would remove them
        return position


def _evaluations(run: RunFolder, after: int, until: int) -> int:
    """How many evaluations a run recorded after a step, up to another one."""
    return sum(line["kind"] == "evaluate" and after < line["step"] <= until for line in read_metrics(run.path))
