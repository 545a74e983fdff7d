"""`detrkit compare`: recipes and runs side by side, and the trainings that are still missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.errors import UserError

from .console import progress_bar
from .evaluate import evaluate_trained, write_evaluation
from .options import Trust

if TYPE_CHECKING:
    from rich.console import Console

    from detrkit.compare.comparison import Comparison
    from detrkit.compare.detections import ImageScores
    from detrkit.compare.matrix import Job
    from detrkit.compare.table import Sheet
    from detrkit.compare.targets import Row


def compare(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET", help="Recipes (names or files), runs, folders of runs, and KEY=VALUE."),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="N", help="All recipes of a published table; several times for several.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The row that the others are compared with.")] = None,
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Image size that work and time are measured for.")
    ] = "800x1066",
    coco_mean: Annotated[
        bool, typer.Option("--coco-mean", help="Also the mean GFLOPs over COCO val2017's first 100 images.")
    ] = False,
    time: Annotated[bool, typer.Option("--time", help="Measure milliseconds and memory on this device.")] = False,
    epochs_to: Annotated[
        float | None,
        typer.Option(metavar="AP", min=0, max=100, help="Epochs that each needed to reach this AP (percent)."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Train what has no result yet.")] = False,
    seeds: Annotated[
        str | None, typer.Option(help="With --run: how many seeds (3 is 0,1,2), or which (4,5).", show_default="1")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="With --run: trainings at a time.", show_default="1")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where --run trains, and where runs of the recipes are found.")] = Path(
        "runs/compare"
    ),
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="With --baseline: find what differences by image need, where it lacks.")
    ] = False,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Order the rows by a column of the tables, highest first.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for table.md, .tex, .csv, .json, curves.png and report.html.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Compare recipes and runs: AP over seeds, parameters, GFLOPs, time, and the published row beside each.

    `detrkit compare sap_detr_r50_50ep dab_detr_r50_50ep` counts and trains nothing; with --run it trains each
    recipe with each seed, one run below --runs for each, and goes on where it was interrupted.
    """
    from detrkit.compare.comparison import compare as measure
    from detrkit.compare.comparison import find_row, ordered
    from detrkit.compare.sheets import make_sheets
    from detrkit.compare.table import order_of
    from detrkit.compare.targets import gather_rows, make_jobs, recipes_of_table, split_arguments
    from detrkit.writing import check_folder

    from .console import lasting_output, open_console
    from .sheets import print_sheet

    console = open_console(file=lasting_output() if run else None)
    height, width = size_of(size)
    for option, said in {"--seeds": seeds, "--parallel": parallel}.items():
        if said is not None and not run:
            raise UserError(f"{option} goes with --run; without it nothing is trained, and all seeds found are shown")
    if evaluate and baseline is None:
        raise UserError("--evaluate goes with --baseline: differences by image are what it is for")
    if out is not None:
        check_folder(out, "--out")
    if run:
        check_folder(runs, "--runs")
    wanted, overrides = split_arguments(targets or [])
    wanted = [*(name for one in table or [] for name in recipes_of_table(one)), *wanted]
    warnings: list[str] = []
    rows = gather_rows(wanted, overrides, runs=runs, warn=None if run else warnings, trust=trust)
    if not rows:
        raise UserError("compare what? Name recipes (`detrkit recipes` lists them), --table 1, or folders of runs")
    if baseline is not None:
        find_row(rows, baseline)
    _check_rows(rows, overrides, {"--baseline": baseline, "--epochs-to": epochs_to}, run=run)
    failed = False
    if run:
        jobs = make_jobs(rows, _seeds("1" if seeds is None else seeds), overrides, runs=runs, trust=trust)
        failed = not _train(console, jobs, parallel or 1)
        rows = gather_rows(wanted, overrides, runs=runs, warn=warnings, trust=trust)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    costs = _count(console, rows, height=height, width=width, coco_mean=coco_mean)
    timings = _time(console, [r for r in rows if r.name in costs], height=height, width=width) if time else {}
    images, notes = _score(console, rows, baseline, evaluate=evaluate, trust=trust) if baseline else ({}, [])
    comparison = measure(rows, baseline=baseline, epochs_to=epochs_to, images=images)
    sheets = make_sheets(comparison, costs, timings, notes)
    unknown: UserError | None = None
    if sort is not None:
        try:
            comparison = ordered(comparison, order_of(sheets, sort))
            sheets = make_sheets(comparison, costs, timings, notes)
        except UserError as error:  # told below the tables: which columns there are shows when all is measured
            unknown = error
    for sheet in sheets:
        print_sheet(console, sheet)
    missing = sum(row.target is not None and not row.trained for row in rows)
    if missing and not run:
        told = f"{missing} of {len(rows)} rows have no result yet: the same command with --run trains them"
        console.print(f"\n{told}", style="dim")
    if out is not None:
        failed = not _write(console, out, comparison, sheets, costs, timings) or failed
    if unknown is not None:
        raise unknown
    if failed:
        raise typer.Exit(1)


def _check_rows(rows: list[Row], overrides: list[str], wanting_results: dict[str, object], *, run: bool) -> None:
    """Raise UserError where what was named cannot be compared as asked.

    Args:
        rows: what was named, one or more.
        overrides: KEY=VALUE that are laid over recipes.
        wanting_results: options that mean nothing without a trained row, and what was given for them.
        run: whether what has no result is trained first.
    """
    if overrides and all(row.target is None for row in rows):
        raise UserError(f"{overrides[0]} is laid over recipes, and only runs were named: a run stays what it was")
    if run:
        if any(override.partition("=")[0].strip() == "train.seed" for override in overrides):
            raise UserError("the seeds of --run are --seeds (7, for the seed 7 alone), not train.seed")
        if all(row.target is None for row in rows):
            raise UserError("--run trains recipes, and only folders of runs were named")
    elif not any(row.trained for row in rows):
        for option, given in wanting_results.items():
            if given is not None:
                raise UserError(
                    f"{option} goes with trainings, and nothing named here has been evaluated; --run trains recipes"
                )


def _train(console: Console, jobs: list[Job], parallel: int) -> bool:
    """Train what is missing; whether all of it worked."""
    from detrkit.compare.matrix import check_jobs, train_all
    from detrkit.compare.matrix_progress import MatrixProgress

    check_jobs(jobs)
    todo = sum(job.state != "done" for job in jobs)
    console.print(f"{len(jobs)} trainings, {len(jobs) - todo} of them done already")
    if not todo:
        return True
    with MatrixProgress(console) as progress:
        reason = train_all(jobs, parallel=parallel, watch=progress)
    if reason is not None:
        missing = sum(job.state != "done" for job in jobs)
        console.print(f"stopped ({reason}); the same command goes on with the {missing} that are missing")
        raise typer.Exit(130)
    bad = [job for job in jobs if job.state != "done"]
    for job in bad:
        console.print(f"{job.folder.name} {job.state} ({job.note}): {job.output}", style="red", soft_wrap=True)
    return not bad


def _score(
    console: Console, rows: list[Row], baseline: str, *, evaluate: bool, trust: bool
) -> tuple[dict[Path, ImageScores], list[str]]:
    """What each run found by image, and what is to be said of those whose detections are not at hand."""
    from detrkit.compare.comparison import chosen_runs, equal_epoch, find_row
    from detrkit.compare.detections import PLACES, checkpoint_of, find_detections, score_runs, told_of
    from detrkit.engine.cores import workers_for
    from detrkit.evaluation.precision import choose_device
    from detrkit.trained import open_trained

    base, equal = find_row(rows, baseline), equal_epoch(rows)
    runs = [one for row in sorted(rows, key=lambda row: row is not base) for one in chosen_runs(row, equal)]
    for run, evaluation in runs if evaluate else ():
        try:
            find_detections(run, evaluation)
            continue
        except UserError:
            which = checkpoint_of(run, evaluation)
        if which is not None:
            trained = open_trained(str(run.path), (), which=which, trust=trust)
            options = trained.recipe.section("train")
            console.print(f"evaluating {trained.origin}", soft_wrap=True)
            workers, device = workers_for(options, 1), choose_device(options.device)
            result = evaluate_trained(trained, "val", device, workers, console)
            write_evaluation(run.path / PLACES[-1], trained, result, device, str(run.path))
    with progress_bar(console, "comparing images", len(runs)) as advance:
        scores, lacking = score_runs(runs, progress=advance)
    return scores, told_of(lacking)


def _write(
    console: Console, out: Path, comparison: Comparison, sheets: list[Sheet], costs: dict, timings: dict
) -> bool:
    """Write tables, curves and the report; whether all pictures could be drawn."""
    from detrkit.compare.files import write_comparison
    from detrkit.drawing.faults import Faults

    console.print()
    faults = Faults()
    for path in write_comparison(out, comparison, sheets, costs, timings, faults):
        console.print(f"wrote {path}", soft_wrap=True)
    for fault in faults:
        console.print(fault, style="red", soft_wrap=True)
    return not faults


def _count(console: Console, rows: list[Row], *, height: int, width: int, coco_mean: bool) -> dict:
    from detrkit.compare.costs import count_costs, counts_of

    recipes = {row.name: row.recipe for row in rows}
    faults: dict[str, UserError] = {}
    with progress_bar(console, "counting", len(rows) * counts_of(coco_mean)) as advance:
        costs = count_costs(recipes, height=height, width=width, coco_mean=coco_mean, faults=faults, progress=advance)
    told = [f"{name} cannot be built: {error}" for name, error in faults.items()]
    if told and not costs:
        raise UserError("\n".join(told))
    for line in told:
        console.print(f"warning: {line}", style="yellow", soft_wrap=True)
    return costs


def _time(console: Console, rows: list[Row], *, height: int, width: int) -> dict:
    from detrkit.compare.timing import ROUNDS, WARMUP, measure_timings

    recipes = {row.name: row.recipe for row in rows}
    with progress_bar(console, "measuring time", len(rows) * (WARMUP + ROUNDS)) as advance:
        return measure_timings(recipes, height=height, width=width, progress=advance)


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of what --size says. Raises UserError."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32):
        raise UserError(f"--size is {text!r}; should be HEIGHTxWIDTH, 800x1066 say, each at least 32")
    return int(height), int(width)


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isdecimal() for part in parts) or text.strip() == "0":
        raise UserError(f"--seeds is {text!r}; should be a count (3) or seeds with commas (4,5 or 4,)")
    if "," in text:
        return list(dict.fromkeys(map(int, parts)))
    return list(range(int(parts[0])))
