"""From a recipe to a trained detector in a run's folder."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console

from detrkit.engine.data_checks import (
    crowded,
    left_out,
    require_files,
    require_objects,
    unreached,
    with_classes,
)
from detrkit.engine.distributed import alone_among
from detrkit.engine.optimiser import without_effect
from detrkit.engine.options import TrainOptions
from detrkit.engine.progress import Reporter
from detrkit.engine.rehearsal import rehearse, without_gradient
from detrkit.engine.resume import allowed_changes, changed_code, check_categories, find_start
from detrkit.engine.setting_up import begin_records, make_trainer, placed, prepare
from detrkit.engine.trainer import Outcome, Trainer
from detrkit.engine.transfer import init_from
from detrkit.engine.workload import Workload, planned, unlike_one_batch, warnings
from detrkit.errors import UserError
from detrkit.evaluation.evaluate import evaluate
from detrkit.evaluation.precision import describe_precision
from detrkit.recipe.trust import remember
from detrkit.runs.checkpoint import format_categories, pixels_metadata
from detrkit.runs.lock import locked
from detrkit.runs.run_folder import RunFolder
from detrkit.runs.run_loggers import Loggers
from detrkit.wording import counted
from detrkit.writing import explain

if TYPE_CHECKING:
    from detrkit.data.dataset import DataSource
    from detrkit.recipe import Recipe
    from detrkit.system import BaseDetector


def train(
    recipe: Recipe,
    run_dir: Path | str,
    *,
    resume: bool = False,
    which: Literal["last", "best"] = "last",
    trust: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train the detector that a recipe describes; under torchrun, together with the other processes.

    Args:
        recipe: to resume, the recipe of the run's folder, perhaps with other values
        run_dir: the run's folder; the same path in all processes
        resume: go on from a checkpoint of the run, or begin again if it has none yet
        which: the checkpoint to go on from; after "best", what was recorded later is forgotten
        trust: to resume, import also what the run's checkpoint names; see `load_recipe`
        console: where to show progress; None for nowhere

    Raises:
        DataError: the data set cannot be used, or has more classes than `detector.classes`
        CheckpointError: no run to resume, changes that need a new run, or weights that do not fit
        UserError: parts that do not go together; the folder already holds a run, or another process trains it; a
            device that is not there; a logger that is not installed or cannot begin
        NotFiniteError: the loss was not a number any more
    """
    from detrkit.detector import build_criterion

    options: TrainOptions = recipe.section("train")
    with placed(options) as place, ExitStack() as held:
        here, device = place.here, place.device
        source = recipe.section("data")()
        recipe = with_classes(recipe, source)
        loggers = Loggers(options.loggers)  # in every process, so that all of them miss a package
        run = RunFolder(run_dir, loggers if here.is_first else None)
        workload = planned(options, source, here)
        lost = left_out(source)
        require_files(source)
        require_objects(source)
        torch.manual_seed(options.seed)
        start, changed = None, list[str]()
        if resume:
            start = find_start(run, which)
            here.in_first(lambda: held.enter_context(locked(run.path)))
            check_categories(run, start, source)
            changed = [*allowed_changes(run, start, recipe, trust=trust), *changed_code(run, recipe)]
        detector, filled = _filled_detector(recipe, options, source, is_begun=start is not None)
        criterion = build_criterion(recipe)
        prepare(detector, options, device)
        computed: dict[str, Any] = {"device": device, "precision": place.precision}
        idle = rehearse(detector, criterion, name=recipe.name, source=source, **computed)
        toml, categories = recipe.to_toml(defaults=True), format_categories(source.categories)
        reporter = Reporter(run=run if here.is_first else None, console=console)
        trainer = make_trainer(
            place,
            detector=detector,
            criterion=criterion,
            source=source,
            options=options,
            settings=recipe.section("evaluate"),
            workload=workload,
            run=run,
            reporter=reporter,
            evaluate=_evaluate,
            metadata={
                "recipe": toml,
                "categories": categories,
                "classes": str(recipe.get("detector.classes")),
                **pixels_metadata(detector.backbone.mean, detector.backbone.std),
            },
            after_first_step=partial(run.replace_recipe, toml, categories) if here.is_first else None,
        )
        if not resume:  # last of all, so that whatever is refused leaves no run behind
            here.in_first(lambda: _create(run, held, recipe=toml, categories=categories))
        if here.is_first:
            _remember(run, recipe, reporter)
        if filled:
            reporter.say(f"started from {filled}")
        if start is not None:  # before anything is said, as a refused resume leaves the run as it was, its log too
            trainer.resume(start)
        for line in [*introduction(recipe, workload, device), *filter(None, [source.describe()])]:
            reporter.say(line)
        if left := recipe.left_out():
            reporter.say(f'left out, as they are "none": {", ".join(left)}', style="yellow")
        for line in [
            *lost,
            *crowded(source, detector.limit),
            *alone_among(here),
            *warnings(workload, options),
            *without_effect(detector, options),
            *without_gradient(idle),
            *unreached(source, options.epochs),
        ]:
            reporter.warn(line)
        for line in [*unlike_one_batch(workload, detector), *(f"from here on {change}" for change in changed)]:
            reporter.say(line)
        if resume:
            _say_where(trainer, reporter, is_begun=start is not None)
        if resume and start is None and here.is_first:
            run.rewind_metrics(0)
        begin_records(place, run, reporter, recipe.full_values(), step=trainer.at.step, resumed=resume)
        try:
            return trainer.fit()
        except BrokenPipeError:
            raise  # whoever read what is printed has gone
        except OSError as error:
            told = f"{explain(error)}.\n{trainer.checkpoints.left()}"
            raise UserError(f"{told}. Once that is mended, go on: {run.way_on}") from error


def _filled_detector(
    recipe: Recipe, options: TrainOptions, source: DataSource, *, is_begun: bool
) -> tuple[BaseDetector, str]:
    """The detector with the weights that a new run starts from, and what is to be said of them.

    A run that has begun has weights of its own, so that none are fetched for it.
    """
    from detrkit.detector import build_detector

    detector = build_detector(recipe, pretrained=not is_begun and options.init_from is None)
    if options.init_from is None or is_begun:
        return detector, ""
    names = [category.name for category in source.categories]
    return detector, str(init_from(detector, options.init_from, classes=recipe.get("detector.classes"), names=names))


def _say_where(trainer: Trainer, reporter: Reporter, *, is_begun: bool) -> None:
    """From which step a resumed run goes on."""
    if not is_begun:
        reporter.say("there is no checkpoint yet: the run begins again")
        return
    reporter.say(f"resumed after step {trainer.at.step} of {trainer.workload.total_steps}")
    if trainer.is_finished:
        more = "train.epochs" if trainer.at.step >= trainer.workload.total_steps else "train.patience, or 0,"
        reporter.say(f"nothing is left to do; a larger {more} goes on with the run")


def introduction(recipe: Recipe, workload: Workload, device: torch.device) -> list[str]:
    """What is going to happen, in a few lines."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    )
    w = workload
    lines = [
        recipe.title or recipe.name,
        f"{counted(w.images, 'training image')}, {counted(w.steps_per_epoch, 'step')} an epoch, "
        f"{counted(w.epochs, 'epoch')}, {counted(w.total_steps, 'step')}",
        f"effective batch {w.effective_batch} = {counted(w.world, 'process')} x {counted(w.share, 'image')}"
        + (f" in {w.accumulation} pieces of up to {w.micro_batch}" if w.accumulation > 1 else "")
        + f"; the recipe's reference is {w.reference_batch}",
        f"{name}, {describe_precision(recipe.section('train').precision, device)}"
        + (", compiled" if recipe.get("train.compile") else ""),
    ]
    said = recipe.source("train.batch_size")
    if said == "command line" and recipe.source("train.learning_rate") != said:
        lines.append("the batch size is the command line's; the learning rate was not changed with it")
    return lines


def _evaluate(detector: BaseDetector, source: Any, **settings: Any) -> Any:
    return evaluate(detector.for_inference(), source, **settings)


def _create(run: RunFolder, held: ExitStack, *, recipe: str, categories: str) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(run.path))
    run.create(recipe=recipe, categories=categories)


def _remember(run: RunFolder, recipe: Recipe, reporter: Reporter) -> None:
    try:
        remember(run.path, recipe.values.get("imports", ()))
    except OSError as error:
        reporter.say(
            f"what this run imports cannot be remembered ({error}): to open it will need --trust", style="yellow"
        )
