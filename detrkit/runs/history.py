"""What a run has reached so far, read from its folder; and whether two recipes train the same thing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.errors import UserError
from detrkit.evaluation.coco_stats import STAT_NAMES
from detrkit.paths import with_home
from detrkit.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from detrkit.recipe import Recipe

# What a recipe may say differently and still train the same detector in the same way.
_NOT_THE_TRAINING = {
    ("title",),
    ("description",),
    ("reproduces",),
    ("imports",),
    ("evaluate",),
    *(
        ("train", key)
        for key in (
            "seed",
            "device",
            "workers",
            "recompute",
            "micro_batch",
            "log_every",
            "loggers",
            "checkpoint_steps",
            "checkpoint_minutes",
            "max_minutes",
        )
    ),
}


class RecordError(UserError):
    """A line of a run's metrics that is no record."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    stats: the twelve COCO numbers, in [0, 1], None where there was nothing to measure.
    minutes: wall clock since the run began, evaluations included; None in runs that did not note it.
    """

    epoch: int
    step: int
    minutes: float | None
    stats: Mapping[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run's folder as it stands."""

    path: Path
    recipe: Recipe
    evaluations: tuple[Evaluation, ...]

    @property
    def seed(self) -> int:
        return self.recipe.section("train").seed

    @property
    def finished(self) -> bool:
        """Whether the last epoch of its recipe is evaluated, or AP did not rise for as long as it has patience."""
        if not self.evaluations:
            return False
        options, last = self.recipe.section("train"), self.evaluations[-1]
        scored = [one for one in self.evaluations if one.stats.get("AP") is not None]
        if options.patience and scored:
            best = max(scored, key=lambda one: (one.stats["AP"] or 0.0, -one.step))
            if sum(one.step > best.step for one in self.evaluations) >= options.patience:
                return True
        return last.epoch >= options.epochs


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run."""
    return RunFolder(path).exists


def read_run(path: Path, *, trust: bool = False, named: Collection[str] = ()) -> Run:
    """A run's recipe and evaluations. trust, named: see `load_run_recipe`.

    Raises UserError if the folder's recipe cannot be read or imports what is not trusted, RecordError for a damaged
    line of its metrics.
    """
    from detrkit.recipe import load_run_recipe

    evaluations = [_evaluation(line) for line in read_metrics(path) if line.get("kind") == "evaluate"]
    return Run(path, load_run_recipe(path, trust=trust, named=named), tuple(evaluations))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that is still being written is left out.

    Raises RecordError for any other line that is no record.
    """
    file = path / RunFolder.METRICS
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    found = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break is not whole
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{file}:{number}: is not JSON: {error}; mend the line, or take it out") from None
        if fault := _fault(record):
            raise RecordError(f"{file}:{number}: {fault}; mend the line, or take it out")
        found.append(record)
    return found


def _fault(record: Any) -> str | None:
    """What is wrong with a line of metrics; None if nothing is."""
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return 'is no record, which is an object with a "kind"'
    counts = {"train": ("step", "epoch"), "evaluate": ("step", "epoch")}.get(record["kind"], ())
    for key in counts:
        if type(record.get(key)) is not int or not 1 <= record[key] < 2**53:
            return f'"{key}" should be a count'
    numbers = [record.get(name) for name in (*STAT_NAMES, "minutes", "loss")]
    if any(value is not None and type(value) not in (int, float) for value in numbers):
        return "its numbers should be numbers or null"
    return None


def differences(asked: Recipe, found: Recipe) -> list[str]:
    """What a run's recipe says otherwise than the one asked for, as "train.epochs is 4, not 2".

    Seeds, devices, logging and the like do not count, nor does a class count that is left to the data set, nor how the
    path of one folder is written.
    """
    from detrkit.recipe.problems import dotted, format_value

    ours, theirs = training_values(asked), training_values(found)
    if asked.get("detector.classes", None) is None:
        ours.pop(("detector", "classes"), None)
        theirs.pop(("detector", "classes"), None)
    told = []
    for path in dict.fromkeys([*ours, *theirs]):
        there, here = (format_value(side[path]) if path in side else "not set" for side in (theirs, ours))
        if there != here and not _is_same_place(theirs.get(path), ours.get(path)):
            told.append(f"{dotted(path)} is {there}, not {here}")
    return told


def _is_same_place(there: Any, here: Any) -> bool:
    """Whether two values are two ways to write the path of one file or folder that is there."""
    if not (isinstance(there, str) and isinstance(here, str)):
        return False
    try:
        return with_home(there).samefile(with_home(here))
    except (OSError, ValueError, UserError):  # no path, or nothing there
        return False


def training_values(recipe: Recipe) -> dict[tuple, Any]:
    """The values that decide what is trained, by path; the seed is not among them."""
    return {path: value for path, value, _ in recipe.rows() if not _is_left_out(path)}


def _is_left_out(path: Iterable[Any]) -> bool:
    path = tuple(path)
    return any(path[: len(start)] == start for start in _NOT_THE_TRAINING)


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    stats = {name: line.get(name) for name in STAT_NAMES}
    return Evaluation(line["epoch"], line["step"], line.get("minutes"), stats)
