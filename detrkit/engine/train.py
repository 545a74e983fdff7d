"""From a recipe to a trained detector in a run's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from torch import nn

from detrkit.data.dataset import DataSource
from detrkit.engine.cores import available_cores
from detrkit.engine.distributed import Processes, processes
from detrkit.engine.learner import compiled_form
from detrkit.engine.options import EvaluateOptions, TrainOptions
from detrkit.engine.pictures import write_pictures
from detrkit.engine.progress import Reporter
from detrkit.engine.rehearsal import rehearse
from detrkit.engine.resume import allowed_changes, check_categories, find_start
from detrkit.engine.trainer import Outcome, Trainer
from detrkit.engine.transfer import init_from
from detrkit.engine.workload import Workload, plan, share_of_batch, unlike_one_batch, warnings
from detrkit.errors import DataError, UserError
from detrkit.evaluation.evaluate import evaluate
from detrkit.evaluation.precision import choose_device, choose_precision, describe_precision
from detrkit.recipe.trust import remember
from detrkit.runs.checkpoint import format_categories, pixels_metadata
from detrkit.runs.environment import describe_environment
from detrkit.runs.lock import locked
from detrkit.runs.run_folder import RunFolder
from detrkit.runs.run_loggers import Loggers
from detrkit.structures import QueryLimit
from detrkit.wording import counted
from detrkit.writing import explain

COCO_DETECTIONS = 100  # of an image, the most that COCO's AP looks at

if TYPE_CHECKING:
    from detrkit.detector import BaseDetector
    from detrkit.recipe import Recipe


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
    from detrkit.detector import build_criterion, build_detector

    options: TrainOptions = recipe.section("train")
    with processes(options.device) as here, ExitStack() as held:
        device = choose_device(options.device, here.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # streams and events are the current device's
        # One for all: "auto" measures, and processes might find different things.
        precision = here.from_first(choose_precision(options.precision, device))
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
            in_first(here, lambda: held.enter_context(locked(run.path)))
            check_categories(run, start, source)
            changed = allowed_changes(run, start, recipe, trust=trust)
        # Weights that are loaded anyway need not be fetched first.
        is_filled = start is not None or options.init_from is not None
        detector = build_detector(recipe, pretrained=not is_filled)
        report = None
        if options.init_from is not None and start is None:
            report = init_from(detector, options.init_from, classes=recipe.get("detector.classes"))
        criterion = build_criterion(recipe)
        if options.compile:
            compiled_form(detector, device)  # what cannot be is said before a run is made
        rehearse(detector, criterion, name=recipe.name)
        toml, categories = recipe.to_toml(defaults=True), format_categories(source.categories)
        if not resume:
            in_first(here, lambda: _create(run, held, recipe=toml, categories=categories))
        reporter = Reporter(run=run if here.is_first else None, console=console)
        if here.is_first:
            _remember(run, recipe, reporter)
        if report is not None:
            reporter.say(f"started from {report}")
        settings: EvaluateOptions = recipe.section("evaluate")
        workers = workers_for(options, here.world)
        evaluate_now = partial(
            _evaluate,
            source=source,
            batch_size=settings.batch_size,
            workers=workers,
            device=device,
            precision=precision,
        )
        draw = partial(_draw, source=source, settings=settings, device=device, precision=precision)
        trainer = Trainer(
            detector=detector.to(device),
            criterion=criterion.to(device),
            source=source,
            options=options,
            workload=workload,
            workers=workers,
            device=device,
            precision=precision,
            here=here,
            run=run,
            reporter=reporter,
            evaluate=evaluate_now,
            draw=draw if settings.pictures else None,
            after_first_step=partial(run.replace_recipe, toml, categories) if here.is_first else None,
            metadata={
                "recipe": toml,
                "categories": categories,
                "classes": str(recipe.get("detector.classes")),
                **pixels_metadata(detector.backbone.mean, detector.backbone.std),
            },
        )
        if start is not None:  # before anything is said, as a refused resume leaves the run as it was, its log too
            trainer.resume(start)
        found = source.describe()
        for line in [*introduction(recipe, workload, device), *([found] if found else [])]:
            reporter.say(line)
        if left := recipe.left_out():
            reporter.say(f'left out, as they are "none": {", ".join(left)}', style="yellow")
        for line in [*lost, *crowded(source, detector.limit), *warnings(workload, options)]:
            reporter.say(f"warning: {line}", style="yellow")
        for line in unlike_one_batch(workload, detector):
            reporter.say(line)
        for line in changed:
            reporter.say(f"from here on {line}")
        if start is not None:
            reporter.say(f"resumed after step {trainer.at.step} of {workload.total_steps}")
        elif resume:
            reporter.say("there is no checkpoint yet: the run begins again")
            if here.is_first:
                run.rewind_metrics(0)
        in_first(here, lambda: run.add_environment(describe_environment(device, here.world)))
        begin = partial(run.begin_loggers, recipe.full_values(), step=trainer.at.step, resumed=resume)
        in_first(here, lambda: begin(warn=lambda line: reporter.say(f"warning: {line}", style="yellow")))
        try:
            return trainer.fit()
        except BrokenPipeError:
            raise  # whoever read what is printed has gone
        except OSError as error:
            raise UserError(f"{explain(error)}.\n{trainer.kept()}: detrkit train --resume {run.path}") from error


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


def with_classes(recipe: Recipe, source: Any) -> Recipe:
    """The recipe with the data set's class count, if it does not say one itself.

    Raises DataError if it says fewer than there are.
    """
    classes, found = recipe.get("detector.classes"), len(source.categories)
    if classes is None:
        return recipe.with_values({"detector.classes": found}, source="data set")
    if classes < found:
        raise DataError(
            f"detector.classes is {classes} ({recipe.source('detector.classes')}), but the data set has {found} "
            'classes; give it that many, or "none" to take the count from the data'
        )
    return recipe


def introduction(recipe: Recipe, workload: Workload, device: torch.device) -> list[str]:
    """What is going to happen, in a few lines."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
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


def left_out(source: Any) -> list[str]:
    """What of each split's images and annotations is lost to faults."""
    found = []
    for split, dataset in (("train", source.train), ("val", source.val)):
        found += [f"{split}: {fault.detail}" for fault in dataset.faults if fault.kind == "file names"]
        lost = Counter(fault.kind for fault in dataset.faults if fault.loses)
        if lost:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in lost.most_common())
            found.append(f"{lost.total()} images or annotations of {split} are left out ({kinds}); see check-data")
    return found


def require_files(source: DataSource) -> None:
    """Raise DataError if images' files are not there, which a training would meet hours later."""
    for split, dataset in (("train", source.train), ("val", source.val)):
        if missing := dataset.missing_files:
            named = ", ".join(f"{path} (image {image_id})" for image_id, path in missing[:3])
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(
                f"{len(missing)} of the {len(dataset)} images of {split} have no file: {named}{more}. "
                "Bring them there, take them out of the annotations, or name the right folder in "
                f"data.{split}.images; `detrkit check-data` names all"
            )


def require_objects(source: DataSource) -> None:
    """Raise DataError if a split has nothing to learn from or to be measured on, with what became of all it had."""
    for split, dataset in (("train", source.train), ("val", source.val)):
        if dataset.records.objects().any():
            continue
        crowd = dataset.records.crowd
        lost = Counter(fault.kind for fault in dataset.faults if fault.loses)
        causes = [f"{kind}: {count}" for kind, count in lost.most_common()]
        if len(crowd):
            causes.insert(0, f"crowd regions (iscrowd = 1), which are neither learned nor found: {len(crowd)}")
        advice = ". An exporter that marks every object as a crowd is mended by iscrowd = 0" if len(crowd) else ""
        raise DataError(
            f"no image of {split} keeps an object ({counted(len(dataset), 'image')}; "
            f"{'; '.join(causes) or 'no annotations at all'}); `detrkit check-data` names each{advice}"
        )


def crowded(source: DataSource, limit: QueryLimit | None) -> list[str]:
    """Where images hold more objects than the detector has queries, or than COCO's evaluation counts detections."""
    found = []
    for split, dataset in (("train", source.train), ("val", source.val)):
        objects = dataset.records.objects()
        lost = "learned" if split == "train" else "found"
        if limit is not None and (over := int((objects > limit.count).sum())):
            found.append(
                f"{counted(over, 'image')} of {split} with up to {objects.max()} objects, and the detector has "
                f"{limit.count} queries, one for each: the rest cannot be {lost}; raise {limit.key}"
            )
        if split == "val" and (over := int((objects > COCO_DETECTIONS).sum())):
            found.append(
                f"{counted(over, 'image')} of {split} with up to {objects.max()} objects: COCO's evaluation counts the "
                f"best {COCO_DETECTIONS} detections of an image, so AP cannot reach 100 there"
            )
    return found


def workers_for(options: TrainOptions, world: int) -> int:
    """Loader processes of one training process: `train.workers`, or by the cores, one of which computes."""
    if options.workers is not None:
        return options.workers
    return max(1, min(8, available_cores() // world - 1))


def _evaluate(detector: BaseDetector, *, progress: Any, source: Any, **settings: Any) -> Any:
    return evaluate(detector.for_inference(), source, progress=progress, **settings)


def _draw(
    detector: nn.Module, folder: Path, *, source: Any, settings: EvaluateOptions, device: torch.device, precision: str
) -> list[Path]:
    return write_pictures(
        detector,
        source,
        folder,
        count=settings.pictures,
        threshold=settings.picture_score,
        device=device,
        precision=precision,
    )


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


def in_first(here: Processes, write: Callable[[], object]) -> None:
    """Write in the first process; the others learn of a fault."""
    fault: Exception | None = None
    if here.is_first:
        try:
            write()
        except Exception as error:
            fault = error
    fault = here.from_first(fault)
    if fault is not None:
        raise fault
