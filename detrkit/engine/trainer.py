"""The one training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.engine.checkpoints import Checkpoints, Position
from detrkit.engine.distributed import Processes, accumulating
from detrkit.engine.ema import MovingAverage
from detrkit.engine.interrupt import StopRequest, stop_on_signals
from detrkit.engine.learner import AVERAGED, Learner
from detrkit.engine.loss_scale import LossScale
from detrkit.engine.meter import Meter
from detrkit.engine.microbatch import count_objects, cut
from detrkit.engine.optimiser import build_optimiser, clip_and_step, require_none_to_train, set_rate
from detrkit.engine.options import TrainOptions
from detrkit.engine.out_of_memory import no_memory_for
from detrkit.engine.progress import Reporter
from detrkit.engine.readback import Readback, Reading
from detrkit.engine.recent_steps import RecentSteps
from detrkit.engine.recomputing import layered
from detrkit.engine.replay import seed_step
from detrkit.engine.schedule import rate_factor
from detrkit.engine.skipped_images import SkippedImages
from detrkit.engine.soundness import NotFiniteError, may_help
from detrkit.engine.workload import Workload
from detrkit.errors import DataError, UserError
from detrkit.layers import sent
from detrkit.losses.base import BESIDE, BaseCriterion
from detrkit.runs.run_folder import RunFolder
from detrkit.wording import counted, first_of, percent
from detrkit.writing import explain

COUNTS = ("bad_costs", "stop")  # numbers of a step that are no means


@dataclass(frozen=True)
class Outcome:
    """How a run, or a part of it, ended."""

    finished: bool
    step: int
    stats: Mapping[str, float | None] | None
    """the last evaluation's twelve numbers; None if this start made none"""
    best_ap: float | None
    best_step: int
    reason: str | None
    """why it stopped early: a signal's name or the time limit"""


class Trainer:
    """Trains a detector, and writes down everything that is needed to go on after an interruption.

    The random numbers of a step depend on (seed, step, process) alone, and so does the learning rate; the
    loader's batches depend on (seed, epoch). So a checkpoint needs no generator states, and a resumed run does
    what the uninterrupted one would have done, to the bit on a CPU.

    Args:
        source: gives `loader(split=..., batch_size=..., epoch=..., seed=..., workers=..., rank=..., world=...,
            skip=...)`
        evaluate: called with (detector, progress), in all processes; gives an object with `stats`
        draw: called with (detector, folder) in the first process after each evaluation, gives the files that it wrote;
            None for no pictures
        after_first_step: called once, when a step of this start has succeeded
        metadata: strings that go into the weights' files
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        criterion: BaseCriterion,
        source: Any,
        options: TrainOptions,
        workload: Workload,
        workers: int,
        device: torch.device,
        precision: str,
        here: Processes,
        run: RunFolder,
        reporter: Reporter,
        evaluate: Callable[..., Any],
        draw: Callable[..., Any] | None = None,
        after_first_step: Callable[[], object] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.detector, self.criterion, self.source = detector, criterion, source
        self.options, self.workload, self.workers = options, workload, workers
        self.device, self.precision, self.here = device, precision, here
        self.run, self.reporter = run, reporter
        self._evaluate, self._draw, self._metadata = evaluate, draw, dict(metadata or {})
        self._after_first_step = after_first_step
        self.at = Position()
        require_none_to_train(criterion, detector)
        self.optimiser = build_optimiser(detector, options)  # which may freeze parts
        self.optimiser.zero_grad(set_to_none=True)  # of whatever the detector's owner, or a step cut short, has left
        self._learner = here.join(Learner(detector, criterion, device, precision, compiled=options.compile))
        self._scale = LossScale(device, precision)
        self.average = MovingAverage(detector, decay=options.ema_decay) if options.ema_decay else None
        self.meter = Meter(
            options=options,
            workload=workload,
            device=device,
            # The numbers are the same in all processes; one of them writes them down.
            run=run if here.is_first else None,
            reporter=reporter,
        )
        self.checkpoints = Checkpoints(
            run=run,
            is_first=here.is_first,
            options=options,
            precision=precision,
            workload=workload,
            detector=detector,
            criterion=criterion,
            average=self.average,
            optimiser=self.optimiser,
            scale=self._scale,
            meter=self.meter,
            metadata=self._metadata,
        )
        self._readback = Readback()
        self._skipped = SkippedImages(reporter)
        self._stop_at: int | None = None
        self._updates = False  # whether it stands between two steps' states, which nobody could go on from
        self._stats: Mapping[str, float | None] | None = None
        self._recent = RecentSteps(
            detector=detector,
            options=options,
            workload=workload,
            precision=precision,
            rank=here.rank,
            run=run,
            metadata=self._metadata,
        )

    def fit(self) -> Outcome:
        """Train to the end, or until somebody asks to stop.

        Raises:
            DataError: an image cannot be read, or the processes that read them have ended
            NotFiniteError: a loss or gradient was not finite; names the step, its losses and images
        """
        self.reporter.start(self.workload, self.at.step)
        try:
            with stop_on_signals(tells=self.here.is_first) as request:
                while not self._is_stopped(request):
                    if self._evaluation_is_due():
                        self._run_evaluation()
                    elif self.at.step < self.workload.total_steps and not self._has_converged():
                        self._run_epoch(request)
                    else:
                        break
            if self._has_converged() and self.at.step < self.workload.total_steps:
                self.reporter.say(
                    f"no better AP in {counted(self.options.patience, 'evaluation')} (train.patience): stopped at step "
                    f"{self.at.step} of {self.workload.total_steps}"
                )
            self._skipped.tell()
            if self._stats is not None:
                result = {"AP": self._stats["AP"], "best_AP": self.at.best_ap, "best_step": self.at.best_step}
                numbers = {name: float(value) for name, value in result.items() if value is not None}
                self.run.loggers.log("result", self.at.step, numbers)
        except DataError as error:
            raise DataError(f"{error}\nOnce that is mended, go on: {self.run.way_on}") from error
        finally:
            self.reporter.stop()
            self.run.loggers.close(finished=self.is_finished)
        return Outcome(
            finished=self.is_finished,
            step=self.at.step,
            stats=self._stats,
            best_ap=self.at.best_ap,
            best_step=self.at.best_step,
            reason=request.reason or ("a signal to another process" if self._stop_at is not None else None),
        )

    # --- steps

    def _is_stopped(self, request: StopRequest) -> bool:
        # Several processes agree by way of a step's numbers; one alone need not do another step for that.
        return self._stop_at is not None or (self.here.world == 1 and request.reason is not None)

    def _run_epoch(self, request: StopRequest) -> None:
        """The rest of the epoch that the run stands in, and a checkpoint at its end.

        Whatever ends it before, an image, another process, somebody's own part or a second Ctrl-C, what has been
        trained is saved.
        """
        try:
            self._take_steps(request)
            self._save()
        except (Exception, KeyboardInterrupt) as error:
            if self.at.step > self.checkpoints.saved_step and not self._updates:
                with suppress(Exception):  # what ended the training is to be told, not what came of that
                    self._save()
                    if not isinstance(error, UserError | OSError):  # which are told with what goes on
                        self.reporter.say(f"what was trained is saved, after step {self.at.step}: {self.run.way_on}")
            raise

    def _take_steps(self, request: StopRequest) -> None:
        epoch, done = divmod(self.at.step, self.workload.steps_per_epoch)
        self._learner.train()
        loader = self.source.loader(
            split="train",
            batch_size=self.workload.share,
            epoch=epoch,
            seed=self.options.seed,
            workers=self.workers,
            rank=self.here.rank,
            world=self.here.world,
            skip=done,
        )
        for batch, objects in self._counted(loader):
            self._skipped.note(batch.skipped)
            limit = self.options.max_minutes if self.here.is_first else None  # who tells why it stops has to know it
            if limit and self.meter.clock.minutes() >= limit:
                request.reason = request.reason or "train.max_minutes"
            self._take(self._step(batch, objects, request))
            if self._stop_at is not None and self.at.step >= self._stop_at:
                break
            if self.checkpoints.are_due(self.at.step):
                self._save()

    def _counted(self, loader: Iterable[Any]) -> Iterator[tuple[Any, float]]:
        """Each batch with the number of objects in those of all processes, at least 1."""
        for batch in loader:
            own = torch.tensor(float(count_objects(batch)))
            yield batch, max(1.0, self.here.sum(own).item())  # on the CPU: no wait for the device

    def _step(self, batch: Any, count: float, request: StopRequest) -> list[Reading]:
        """One optimiser step. Nothing in it waits for the device (what the criterion does is its own affair).

        The loss of the whole effective batch is divided by the number of objects in it, over all pieces and all
        processes, so that pieces and processes give the gradient of one big batch.
        """
        step, world = self.at.step, self.here.world
        seed_step(self.options.seed, step, self.here.rank)
        bad_costs = self.criterion.bad_costs
        factor = rate_factor(step, steps_per_epoch=self.workload.steps_per_epoch, options=self.options)
        set_rate(self.optimiser, factor)
        short_of_memory = None
        try:
            totals = self._gradients(batch, count / world)
        except torch.OutOfMemoryError as error:
            short_of_memory = str(error)
        if short_of_memory is not None:  # what the step held is free only now, and a checkpoint needs some
            self.optimiser.zero_grad(set_to_none=True)  # nothing is left of it but what norms that learn have counted
            keeping = [name for name in layered(self.detector) if name not in self.options.recompute]
            at, workload, run = self.at.step, self.workload, self.run
            raise no_memory_for(batch, short_of_memory, step=at, workload=workload, run=run, keeping=keeping)
        scale = self._scale.numbers()
        self._updates = True
        norm = clip_and_step(self.optimiser, self.options.clip_norm, self._scale.value)
        self._scale.update(norm)
        if self.average is not None:
            self.average.update()
        # With the numbers goes whether a signal has come here, so that all processes stop after the same step. Costs
        # are counted in all of them together, all else is a mean.
        counts = torch.tensor([(self.criterion.bad_costs - bad_costs) * world, request.reason is not None])
        means = {**totals, "norm": norm, **scale}
        numbers = torch.stack([value.float() for value in means.values()])
        numbers = torch.cat((numbers, sent(counts.float(), self.device)))
        self._recent.add(step, batch, count / world)
        self.at.step += 1
        self._updates = False
        self.meter.clock.step(len(batch.targets) * world)
        return self._readback.push(step, (*means, *COUNTS), self.here.sum(numbers) / world)

    def _gradients(self, batch: Any, count: float) -> dict[str, Tensor]:
        """Add up the gradients of a batch piece by piece, losses divided by `count` objects; gives the losses."""
        # Gradients are averaged over the processes: a share of the objects makes that the whole batch's mean.
        objects = torch.full((), count, device=self.device)
        totals: dict[str, Tensor] = {}
        pieces = math.ceil(len(batch.targets) / self.workload.micro_batch)
        for number, piece in enumerate(cut(batch, self.workload.micro_batch, self.device), start=1):
            with accumulating(self._learner, more=number < pieces):
                losses = self._learner(piece, objects, len(batch.targets))
                self._scale.scaled(losses["total"]).backward()
            share = count_objects(piece) / count
            for name, value in losses.items():
                value = value.detach() * share if name in AVERAGED else value.detach()
                totals[name] = totals[name] + value if name in totals else value
        return totals

    def _take(self, readings: list[Reading]) -> None:
        """Act on what has come back from the device."""
        for reading in readings:
            values = reading.values
            # A gradient may be too large for float16 only times its scale, which is halved then.
            scaled = values.get("loss_scale", 1) > 1
            if not (np.isfinite(values["total"]) and (scaled or np.isfinite(values["norm"]))):
                self._fail(reading)
            if self._after_first_step is not None:
                self._after_first_step()
                self._after_first_step = None
            if values["stop"] > 0 and self._stop_at is None:
                # A checkpoint may bring readings early in one process; all of them stop after the same step.
                self._stop_at = reading.step + 1 + (self.device.type == "cuda")
            means = {name: value for name, value in values.items() if name not in COUNTS}
            self.meter.add(reading.step + 1, means, bad_costs=round(values["bad_costs"]))

    def _fail(self, reading: Reading) -> None:
        """Save what is sound and stop: the update of a gradient that is not finite was left out."""
        values = reading.values
        shown = ", ".join(f"{name} {v:.4g}" for name, v in values.items() if name not in BESIDE)
        faults = self.checkpoints.faults()
        again = self._recent.keep(reading.step, weights_step=self.at.step)
        self._readback.flush()
        if not faults:
            self._save()
            advice = f"The state without this update is saved: {self.run.way_on} goes on after it"
        else:
            advice = f"Not finite either: {first_of(faults)}. {self.checkpoints.left()}"
        raise NotFiniteError(
            f"the loss or its gradient is not finite at step {reading.step + 1} of {self.workload.total_steps}: "
            f"{shown}; gradient norm {values['norm']:.4g}\n"
            f"images of this step: {self._recent.images(reading.step)}\n"
            f"{advice}. {may_help(self.precision)}\n{again}"
        )

    # --- evaluation

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train or to evaluate."""
        return (self.at.step >= self.workload.total_steps or self._has_converged()) and not self._evaluation_is_due()

    def _has_converged(self) -> bool:
        """Whether the last `train.patience` evaluations brought no better AP."""
        patience = self.options.patience
        return bool(patience) and self.at.best_ap is not None and self.at.waited >= patience

    def _evaluation_is_due(self) -> bool:
        epochs, within = divmod(self.at.step, self.workload.steps_per_epoch)
        if within or not epochs or self.at.evaluated == self.at.step:
            return False
        every = self.options.evaluate_every
        return epochs == self.options.epochs or bool(every and epochs % every == 0)

    def _run_evaluation(self) -> None:
        subject = self.average.module if self.average is not None else self.detector
        self.here.share(subject.buffers())
        result = self._evaluate(subject, progress=self.reporter.evaluation())
        self._stats, step = result.stats, self.at.step
        ap = result.stats["AP"]
        is_best = ap is not None and (self.at.best_ap is None or ap > self.at.best_ap)
        if is_best:
            self.at.best_ap, self.at.best_step = ap, step
        self.at.waited = 0 if is_best else self.at.waited + 1
        self.at.evaluated = step
        if self.here.is_first:
            epoch = step // self.workload.steps_per_epoch
            minutes = round(self._minutes(), 3)
            self.run.log("evaluate", step, {"epoch": epoch, "minutes": minutes, **result.stats})
            numbers = "  ".join(f"{name} {percent(result.stats.get(name))}" for name in ("AP", "AP50", "AP75"))
            self.reporter.say(f"epoch {epoch}  {numbers}{'  (best so far)' if is_best else ''}")
        self._save()
        if is_best:
            self.checkpoints.keep_best()
        if self.here.is_first and self._draw is not None:
            self._draw_pictures(self._draw, subject)
        self.meter.clock.evaluated()

    def _draw_pictures(self, draw: Callable[..., Any], subject: nn.Module) -> None:
        """Pictures are for looking at: whatever goes wrong with them ends no training."""
        folder = self.run.pictures / f"epoch_{self.at.step // self.workload.steps_per_epoch:04d}"
        try:
            for path in draw(subject, folder):
                self.run.loggers.picture(f"pictures/{path.stem}", path, self.at.step)
        except Exception as error:
            reason = explain(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self.reporter.warn(f"no pictures in {folder}: {reason}")

    # --- checkpoints

    def _save(self) -> None:
        self._take(self._readback.flush())
        self.checkpoints.save(self.at, minutes=self._minutes())

    def _minutes(self) -> float:
        """Wall clock of the run so far, over all its starts."""
        return self.at.minutes + self.meter.clock.minutes()

    def resume(self, folder: Path | None = None) -> None:
        """Go back to a checkpoint's folder, by default the run's last. Call it before `fit`.

        Raises:
            CheckpointError: there is none, it is damaged, or it does not belong to this recipe and data
        """
        self.at = self.checkpoints.restore(folder)
