"""Training of any detector, without a recipe."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from torch import nn

from detrkit.data.dataset import DataSource
from detrkit.engine.data_checks import left_out, require_files, require_objects
from detrkit.engine.distributed import alone_among
from detrkit.engine.optimiser import without_effect
from detrkit.engine.options import EvaluateOptions, TrainOptions
from detrkit.engine.progress import Reporter
from detrkit.engine.recomputing import keep_again
from detrkit.engine.resume import check_categories
from detrkit.engine.setting_up import begin_records, make_trainer, placed, prepare
from detrkit.engine.trainer import Outcome
from detrkit.engine.transfer import init_from
from detrkit.engine.workload import planned, warnings
from detrkit.errors import UserError
from detrkit.evaluation.evaluate import evaluate
from detrkit.losses.base import BaseCriterion
from detrkit.runs.checkpoint import find_folder, format_categories
from detrkit.runs.history import read_metrics
from detrkit.runs.lock import locked
from detrkit.runs.run_folder import RunFolder
from detrkit.runs.run_loggers import Loggers


def fit(
    detector: nn.Module,
    criterion: BaseCriterion,
    source: DataSource,
    run_dir: Path | str,
    options: TrainOptions | None = None,
    *,
    evaluation: EvaluateOptions | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train a detector of any make as a recipe's is trained: one loop, the same record, checkpoints and evaluation.

    Under torchrun together with the other processes. The folder becomes a run without a recipe: what reads the recipe
    (`detrkit evaluate`, `report`, ...) has no use for it; the detector's weights are `best/weights.safetensors`, and
    with `ema_decay` `best/ema.safetensors`, which is what was evaluated.

    Args:
        detector: a module with `forward(images, mask, targets)`, whose result the criterion takes, and
            `detect(images, mask, sizes)`, both as `detrkit.detector.Detector` has them. It comes back with the last
            weights; what `options.freeze` has frozen is not frozen any more.
        criterion: gives "total" and what else is to be shown; `OwnLosses` for a detector that gives losses itself.
        source: the data; its labels are 0 .. K - 1.
        run_dir: the run's folder; the same path in all processes.
        options: what stands in a recipe's `train`; the defaults are SAP-DETR's.
        evaluation: what stands in its `evaluate`.
        resume: go on from the run's last checkpoint, or begin again if the run ended before its first one.
        console: where to show progress; None for nowhere.

    Raises:
        UserError: the folder already holds a run, or another process trains it; a device or logger that is not there.
        CheckpointError: no checkpoint to resume, or one of another detector or data.
        DataError: the data cannot be used.
        NotFiniteError: the loss was not a number any more.
    """
    options, settings = options or TrainOptions(), evaluation or EvaluateOptions()
    with placed(options) as place, ExitStack() as held:
        here = place.here
        loggers = Loggers(options.loggers)
        run = RunFolder(run_dir, loggers if here.is_first else None)
        workload = planned(options, source, here)
        require_files(source)
        require_objects(source)
        held.callback(keep_again, detector)
        prepare(detector, options, place.device)
        here.in_first(lambda: _open(run, held, resume=resume))
        goes_on = resume and not here.from_first(_ended_early(run))
        if goes_on and (start := find_folder(run.last)) is not None:
            check_categories(run, start, source)
        reporter = Reporter(run=run if here.is_first else None, console=console)
        if options.init_from is not None and not goes_on:
            names = [category.name for category in source.categories]
            reporter.say(f"started from {init_from(detector, options.init_from, classes=len(names), names=names)}")
        trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        held.callback(lambda: [parameter.requires_grad_() for parameter in trained])
        trainer = make_trainer(
            place,
            detector=detector,
            criterion=criterion,
            source=source,
            options=options,
            settings=settings,
            workload=workload,
            run=run,
            reporter=reporter,
            evaluate=evaluate,
            metadata={"categories": format_categories(source.categories)},
        )
        if goes_on:
            trainer.resume()
            reporter.say(f"resumed after step {trainer.at.step} of {workload.total_steps}")
        elif resume:
            reporter.say("there is no checkpoint yet: the run begins again")
            here.in_first(lambda: run.rewind_metrics(0))
        notes = [*warnings(workload, options), *without_effect(detector, options)]
        for line in [*left_out(source), *alone_among(here), *notes]:
            reporter.warn(line)
        said = {"train": asdict(options), "evaluate": asdict(settings)}
        begin_records(place, run, reporter, said, step=trainer.at.step, resumed=resume)
        return trainer.fit()


def _ended_early(run: RunFolder) -> bool:
    """Whether a run was begun and wrote no checkpoint; one that was evaluated had one, which is gone."""
    if any(find_folder(folder) for folder in (run.last, run.best)):
        return False
    kinds = {line["kind"] for line in read_metrics(run.path)}
    is_begun = bool(kinds) or (run.path / run.ENVIRONMENT).is_file()
    return is_begun and "evaluate" not in kinds


def _open(run: RunFolder, held: ExitStack, *, resume: bool) -> None:
    """Lock the folder; raise UserError if a run is there that is not resumed."""
    if not resume and (run.exists or run.metrics_path.exists() or find_folder(run.last)):
        raise UserError(f"{run.path} already holds a run. Go on with it: {run.way_on}; or choose another folder")
    run.path.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(run.path))
