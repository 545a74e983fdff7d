"""`detrkit train`: from a recipe to a trained detector."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from detrkit.errors import UserError

from .console import Console, lasting_output
from .options import Overrides, Trust

if TYPE_CHECKING:
    from detrkit.engine.trainer import Outcome
    from detrkit.recipe import Recipe


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Name or path of a recipe; with --resume, a run.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        # Two names, because torchrun takes a --run that is meant for us for the beginning of its own --run-path.
        typer.Option(
            "--run-dir", "--run", help="The run's folder.", show_default="runs/NAME, or runs/NAME-2, ... if taken"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name, instead of the recipe's.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a run that was interrupted; with RECIPE and --run-dir, begin one that is not there.",
        ),
    ] = False,
    count: Annotated[
        str | None,
        typer.Option("--processes", metavar="N|auto", help="Processes on this machine; auto: one for each GPU."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Train a detector: `detrkit train quickstart`, `detrkit train sap_detr_r50_50ep data.root=~/coco`."""
    # Here and not above, so that `detrkit --help` does not wait for torch.
    from detrkit.engine.distributed import processes
    from detrkit.engine.launch import count_processes, launch, told_to_launcher
    from detrkit.engine.train import train as run_training
    from detrkit.recipe.overrides import is_override
    from detrkit.runs.run_folder import new_run_folder
    from detrkit.wording import typed

    values = list(overrides or [])
    if recipe is not None and is_override(recipe):
        values, recipe = [recipe, *values], None
    with told_to_launcher():
        goes_on = resume and not _begins(recipe, run)
        loaded, folder, which = _load(recipe, values, run, name, resume=goes_on, trust=trust)
        options = loaded.section("train")
        if count is not None and (number := count_processes(count, options)) > 1:
            named = [*(["--run-dir", str(run)] if run else []), *(["--name", name] if name else [])]
            flags = [*(["--resume"] if resume else []), *(["--trust"] if trust else [])]
            raise typer.Exit(launch(["train", *([recipe] if recipe else []), *values, *named, *flags], number))
        with processes(options.device) as here, ExitStack() as held:
            if folder is None:
                made = new_run_folder(Path("runs"), name or loaded.name.replace("/", "-"))
                folder = here.from_first(held.enter_context(made) if here.is_first else None)
            console = Console(file=lasting_output()) if here.is_first else None
            outcome = run_training(loaded, folder, resume=goes_on, which=which, trust=trust, console=console)
    if console is None:
        return
    if not outcome.finished:
        in_time = outcome.reason == "train.max_minutes"
        again = ", for as long again, or to the end with train.max_minutes=none" if in_time else ""
        way_on = f"Go on with: detrkit train --resume {typed(folder)}{again}"
        console.print(f"stopped after step {outcome.step} ({outcome.reason}). {way_on}", soft_wrap=True)
        raise typer.Exit(0 if in_time else 130)
    _print_result(console, folder, outcome, events="tensorboard" in loaded.section("train").loggers)


def _load(
    recipe: str | None, values: list[str], run: Path | None, name: str | None, *, resume: bool, trust: bool
) -> tuple[Recipe, Path | None, Literal["last", "best"]]:
    """The recipe, the run's folder (None: a new one below runs/), and the checkpoint that a resume goes on from."""
    from detrkit.recipe import load_recipe
    from detrkit.runs.recipes import run_recipe
    from detrkit.runs.run_folder import RunFolder
    from detrkit.wording import typed
    from detrkit.writing import check_folder

    which: Literal["last", "best"] = "last"
    folder = run
    if resume:
        folder, which = _run_to_resume(recipe, run, name)
        loaded = run_recipe(folder, values, trust=trust)
    elif recipe is None:
        raise UserError(
            "which recipe? `detrkit recipes` lists those that ship; to begin with: detrkit train quickstart"
        )
    elif Path(recipe, RunFolder.RECIPE).is_file() and Path(recipe, RunFolder.CATEGORIES).is_file():
        raise UserError(f"{recipe} is a run. Go on with it: detrkit train --resume {typed(recipe)}")
    else:
        loaded = load_recipe(recipe, values, trust=trust)
    if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name):
        raise UserError(f"--name is {name!r}; should be the name of a folder below runs/, or --run-dir any folder")
    if not resume and run is not None and name is not None and run.resolve() != Path("runs", name).resolve():
        raise UserError(f"--run-dir {run} and --name {name}, which is runs/{name}, are two places: take one away")
    if run is not None:
        check_folder(run, "--run-dir")
    return loaded, folder, which


def _begins(recipe: str | None, run: Path | None) -> bool:
    """Whether --resume finds nothing to go on with, and both a recipe and the place of its run are named.

    So one command does for a job that may be started again, by a cluster's queue, say.
    """
    from detrkit.runs.run_folder import RunFolder

    named = [Path(recipe), run] if recipe is not None and run is not None else []
    runs = [folder.parent if folder.name in ("last", "best") else folder for folder in named]
    return bool(runs) and not any(RunFolder(folder).exists for folder in runs)


def _run_to_resume(recipe: str | None, run: Path | None, name: str | None) -> tuple[Path, Literal["last", "best"]]:
    """The folder that is meant, and which of its checkpoints: --run, a run's folder in the recipe's place or one of
    the two checkpoints in it, or runs/NAME.
    """
    from detrkit.runs.run_folder import RunFolder

    if recipe is not None and run is not None:
        of = Path(recipe).parent if Path(recipe).name in ("last", "best") else Path(recipe)
        if RunFolder(of).exists and of.resolve() != run.resolve():
            raise UserError(f"{recipe} and --run-dir {run} are two runs: take one away")
    called = name or recipe
    for folder in (Path(recipe) if recipe else None, run, Path("runs", called) if called else None):
        found: tuple[Path, Literal["last", "best"]] | None = None
        if folder is not None and RunFolder(folder).exists:
            found = folder, "last"
        elif folder is not None and folder.name in ("last", "best") and RunFolder(folder.parent).exists:
            found = folder.parent, "best" if folder.name == "best" else "last"
        if found is not None and name and found[0].resolve() != Path("runs", name).resolve():
            raise UserError(f"{found[0]} and --name {name} are two runs, and a run keeps its name: take one away")
        if found is not None:
            return found
    if run is None and recipe is None and name is None:
        raise UserError("which run? detrkit train --resume runs/NAME")
    raise UserError(
        f"{run or (Path('runs', name) if name else recipe)} is not the folder of a run, so nothing to resume: "
        f"one has {RunFolder.RECIPE} and {RunFolder.CATEGORIES}"
    )


def _print_result(console: Console, folder: Path, outcome: Outcome, *, events: bool) -> None:
    from detrkit.wording import percent, typed

    lines, pictures = [], folder / "pictures"
    if outcome.stats is not None:
        lines.append(f"AP {percent(outcome.stats['AP'])}   AP50 {percent(outcome.stats['AP50'])}")
    lines += [
        f"best AP {percent(outcome.best_ap)} at step {outcome.best_step}: {folder / 'best'}",
        *([f"pictures: {pictures}"] if pictures.is_dir() else []),
        *([f"curves: tensorboard --logdir {typed(folder)}"] if events else []),
        f"next: detrkit evaluate {typed(folder)}   or   detrkit predict {typed(folder)} IMAGES --out drawn/",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)
