"""What every training begins with, by a recipe or without: where it computes, its trainer, its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from detrkit.data.dataset import DataSource
from detrkit.engine.cores import workers_for
from detrkit.engine.distributed import Processes, processes
from detrkit.engine.learner import compiled_form
from detrkit.engine.options import EvaluateOptions, TrainOptions
from detrkit.engine.pictures import write_pictures
from detrkit.engine.progress import Reporter
from detrkit.engine.recomputing import recompute
from detrkit.engine.trainer import Trainer
from detrkit.engine.workload import Workload
from detrkit.errors import UserError
from detrkit.evaluation.precision import choose_device, choose_precision
from detrkit.losses.base import BaseCriterion
from detrkit.recipe.trust import fingerprints
from detrkit.runs.environment import describe_environment
from detrkit.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Place:
    """Where a training computes."""

    here: Processes
    device: torch.device
    """of this process"""
    precision: str
    """of all processes: "fp32", "bf16" or "fp16" """


@contextmanager
def placed(options: TrainOptions) -> Iterator[Place]:
    """Join the processes that torchrun started, and leave them at the end.

    Raises UserError if there is no such device or precision, or not one GPU for each process.
    """
    with processes(options.device) as here:
        device = choose_device(options.device, here.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # streams and events are the current device's
        # One for all: "auto" measures, and processes might find different things.
        yield Place(here, device, here.from_first(choose_precision(options.precision, device)))


def prepare(detector: nn.Module, options: TrainOptions, device: torch.device) -> None:
    """Have the detector compute in training as the options say, in place, before anything is made of a run.

    Raises UserError if it cannot be compiled, has not the parts that are to be computed again, or is to be both.
    """
    if options.recompute and options.compile:
        raise UserError(
            "train.recompute and train.compile: a compiler decides by itself what it computes again; leave one of them "
            "out"
        )
    if options.compile:
        compiled_form(detector, device)
    recompute(detector, options.recompute)


def make_trainer(
    place: Place,
    *,
    detector: nn.Module,
    criterion: BaseCriterion,
    source: DataSource,
    options: TrainOptions,
    settings: EvaluateOptions,
    workload: Workload,
    run: RunFolder,
    reporter: Reporter,
    evaluate: Callable[..., Any],
    metadata: Mapping[str, str],
    after_first_step: Callable[[], object] | None = None,
) -> Trainer:
    """The trainer of a detector, which is moved to the device.

    Args:
        evaluate: as `detrkit.evaluation.evaluate.evaluate`.
        metadata, after_first_step: as `Trainer` has them.
    """
    computed: dict[str, Any] = {"source": source, "device": place.device, "precision": place.precision}
    workers = workers_for(options, place.here.world)
    draw = partial(write_pictures, count=settings.pictures, threshold=settings.picture_score, **computed)
    return Trainer(
        detector=detector.to(place.device),
        criterion=criterion.to(place.device),
        source=source,
        options=options,
        workload=workload,
        workers=workers,
        device=place.device,
        precision=place.precision,
        here=place.here,
        run=run,
        reporter=reporter,
        evaluate=partial(evaluate, batch_size=settings.batch_size, workers=workers, **computed),
        draw=draw if settings.pictures else None,
        after_first_step=after_first_step,
        metadata=metadata,
    )


def begin_records(
    place: Place, run: RunFolder, reporter: Reporter, said: Mapping[str, Any], *, step: int, resumed: bool
) -> None:
    """Note the environment of this start, and begin with the loggers, after `step` steps.

    Args:
        said: what the run was told, as nested plain values.

    Raises UserError if a logger cannot begin with a new run.
    """
    here = place.here
    begin = partial(run.begin_loggers, said, step=step, resumed=resumed)
    code = fingerprints(said.get("imports") or ())
    here.in_first(lambda: run.add_environment(describe_environment(place.device, here.world, code)))
    here.in_first(lambda: begin(warn=reporter.warn))
