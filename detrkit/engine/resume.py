"""Going on with a run: from which checkpoint, on which classes, and what may be different from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from detrkit.errors import CheckpointError
from detrkit.recipe import Recipe, load_run_recipe
from detrkit.runs.checkpoint import WEIGHTS, find_folder, read_categories, read_metadata
from detrkit.runs.history import read_metrics
from detrkit.runs.recipes import TRAINING, changes, trained_recipe
from detrkit.runs.run_folder import RunFolder
from detrkit.wording import typed

# Why a change needs a new run. Every section that is not of the training is of what the detector computes.
COMPUTES = "what the detector computes"
MOMENTS = "what the optimiser keeps of each parameter"
START = "where the run started from"
KINDS = {
    ("train", "optimizer"): MOMENTS,
    ("train", "freeze"): MOMENTS,
    ("train", "init_from"): START,
}


def find_start(run: RunFolder, which: Literal["last", "best"]) -> Path | None:
    """The checkpoint that a run goes on from; None if it was stopped before its first one, and begins again.

    Raises CheckpointError if there is no run, or if the checkpoint that it had is gone or its weights are damaged.
    """
    if not run.exists:
        raise CheckpointError(f"{run.path} is not the folder of a run: it has no {run.RECIPE}")
    folder = find_folder(run.last if which == "last" else run.best)
    if folder is None:
        fault = f"{run.path / which} is gone, or has no {WEIGHTS}"
    else:
        try:
            read_metadata(folder / WEIGHTS)
            return folder
        except CheckpointError as error:
            fault = str(error)
    if which == "best":
        raise CheckpointError(f"{fault}, so the run cannot go on from there")
    if find_folder(run.best) is not None:
        raise CheckpointError(
            f"{fault}, but {run.best} is there: detrkit train --resume {typed(run.best)} goes on from it, and takes "
            "the records back to where it was written"
        )
    if folder is not None:
        raise CheckpointError(f"{fault}; begin a new run in another folder")
    if any(line.get("kind") == "evaluate" for line in read_metrics(run.path)):
        raise CheckpointError(
            f"{fault}, though the run has been evaluated; bring it back, or begin a new run in another folder"
        )
    return None


def allowed_changes(run: RunFolder, start: Path | None, recipe: Recipe, *, trust: bool) -> list[str]:
    """How `recipe` differs from the one that the checkpoint `start` was trained with, a line for each key.

    Without a checkpoint the run begins again, and anything may be different from what it was begun with.

    Raises CheckpointError that names each change that needs a new run, with its kind.
    """
    if start is None:
        begun = load_run_recipe(run.path, trust=trust)
        return [line for _, line in changes(begun.full_values(), recipe.full_values())]
    before, lines = trained_recipe(run.path, start / WEIGHTS, read_metadata(start / WEIGHTS), trust=trust)
    found = changes(before.full_values(), recipe.full_values())
    refused = [f"{line} ({kind})" for path, line in found if (kind := _kind(path)) is not None]
    if refused:
        raise CheckpointError(
            f"{start} belongs to another recipe than this one; what is different needs a new run:\n  "
            + "\n  ".join(refused)
            + f"\nA new run begins from its weights with train.init_from={typed(run.path)}"
        )
    return [*lines, *(line for _, line in found)]


def changed_code(run: RunFolder, recipe: Recipe) -> list[str]:
    """A line for each file or module whose code is not what the run imported at its last start."""
    return [f"the code of {name} is another" for name in run.changed_code(recipe.values.get("imports", ()))]


def _kind(path: tuple[Any, ...]) -> str | None:
    return COMPUTES if path[0] not in TRAINING else KINDS.get(path[:2])


def check_categories(run: RunFolder, start: Path | None, source: Any) -> None:
    """Raise CheckpointError unless the data set has the classes that the run was begun with."""
    metadata = read_metadata(start / WEIGHTS) if start is not None else None
    before = [(c.id, c.name) for c in read_categories(run.path / run.CATEGORIES, metadata)]
    now = [(c.id, c.name) for c in source.categories]
    if before != now:
        raise CheckpointError(
            f"{run.path} was begun with {len(before)} classes ({before[:3]} ...); the data set now has {len(now)} "
            f"({now[:3]} ...), so it cannot be resumed on it"
        )
