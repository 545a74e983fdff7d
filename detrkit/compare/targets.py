"""What `detrkit compare` compares: recipes and runs, gathered into one row for each recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detrkit.compare.matrix import Job, run_name, run_stem
from detrkit.errors import UserError
from detrkit.recipe import Recipe, list_recipes, load_recipe
from detrkit.recipe.overrides import is_override
from detrkit.recipe.problems import dotted, format_value
from detrkit.runs.history import RecordError, Run, differences, is_run, read_run
from detrkit.runs.lock import LOCK
from detrkit.runs.run_folder import RunFolder
from detrkit.zoo.published import PublishedError, find_published, published_results


@dataclass(frozen=True)
class Row:
    """A recipe with its runs, one for each seed as a rule.

    target: what the recipe was asked for by; None if only its runs were.
    published: the published row that it is meant to reach, or None.
    """

    name: str
    recipe: Recipe
    runs: tuple[Run, ...]
    published: Mapping[str, Any] | None
    target: str | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """What the command line laid over the recipe: keys and values."""
        said = [(path, value) for path, value, source in self.recipe.rows() if str(source) == "command line"]
        return tuple(f"{dotted(path)}={format_value(value)}" for path, value in said)

    @property
    def trained(self) -> tuple[Run, ...]:
        """The runs that have been evaluated at least once."""
        return tuple(run for run in self.runs if run.evaluations)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of these, each once."""
        return tuple(sorted({run.seed for run in self.trained}))


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Targets and `key=value` overrides, which the command line mixes."""
    values = [argument for argument in arguments if is_override(argument)]
    return [argument for argument in arguments if argument not in values], values


def recipes_of_table(table: str) -> list[str]:
    """The shipped recipes of a published table, in its order; its rows on the proxy are not among them.

    Raises UserError for a table that no recipe has a row of.
    """
    order = published_results()
    told = [(entry.name, find_published(entry.reproduces)) for entry in list_recipes()]
    found = [(name, row) for name, row in told if row is not None and not name.startswith("proxy/")]
    names = [(order.index(row), name) for name, row in found if row["table"] == table]
    if not names:
        tables = sorted({row["table"] for _, row in found})
        raise UserError(f"no shipped recipe has a row of Table {table}; there are recipes of {', '.join(tables)}")
    return [name for _, name in sorted(names)]


def gather_rows(
    targets: Sequence[str],
    overrides: Sequence[str],
    *,
    runs: Path,
    warn: list[str] | None = None,
    trust: bool = False,
) -> list[Row]:
    """One row for each recipe, in the order of the targets.

    Args:
        targets: recipes (names, files, or folders with a recipe.toml), runs' folders, and folders that hold runs,
            which stand for all of them.
        overrides: laid over the recipes; a run is what it was.
        runs: the folder below which `--run` trains; its runs of the recipes come along.
        trust: see `load_recipe`.
        warn: takes a line for each run there that does not belong to its recipe any more or has damaged metrics, for
            each run whose own code has changed since, and for each empty folder among the targets, which is passed
            over: `runs/*` names it where a training was killed while it set up.

    Raises UserError for a target that is neither, two recipes of one name, or a `reproduces` without its row.
    """
    rows: list[Row] = []
    loose: list[Run] = []
    given = list(dict.fromkeys(targets))
    held = [target for target in given if not _is_empty(Path(target))]
    if warn is not None and held:
        told = "is passed over: it is empty, as a training leaves its folder that is killed while it sets up"
        warn += [f"{target} {told}" for target in given if target not in held]
    for target in held or given:
        if Path(target).is_dir() and (meant := _runs_meant(Path(target))):
            loose += [read_run(path, trust=trust) for path in meant]
            continue
        recipe = load_recipe(target, overrides, trust=trust)
        if any(row.name == recipe.name for row in rows):
            raise UserError(f"two of the recipes are called {recipe.name}; give one of the files another name")
        rows.append(Row(recipe.name, recipe, (), _published(recipe, target), target))
    rows = [replace(row, runs=_runs_below(runs, row, warn, trust)) for row in rows]
    if warn is not None:
        warn += _changed_code([*(run for row in rows for run in row.runs), *loose])
    for run in loose:
        rows = _add_run(rows, run)
    return [replace(row, runs=tuple(sorted(row.runs, key=lambda run: run.seed))) for row in rows]


def make_jobs(
    rows: Sequence[Row], seeds: Sequence[int], overrides: Sequence[str], *, runs: Path, trust: bool = False
) -> list[Job]:
    """A training for each recipe that was asked for by name and each seed, seed by seed."""
    return [
        Job(row.recipe, row.target, overrides, seed, runs / run_name(row.name, seed), trust=trust)
        for seed in seeds
        for row in rows
        if row.target is not None
    ]


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but a lock."""
    return folder.is_dir() and all(path.name == LOCK for path in folder.iterdir())


def _runs_meant(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else the runs that lie in it, as --run leaves them; none for a project's."""
    found = [folder] if is_run(folder) else [path for path in sorted(folder.iterdir()) if is_run(path)]
    if not found and not (folder / RunFolder.RECIPE).is_file():
        raise UserError(
            f"{folder} is neither a run's folder nor a project's (it has no recipe.toml), does not hold runs, and is "
            "no recipe"
        )
    return found


def _runs_below(folder: Path, row: Row, warn: list[str] | None, trust: bool) -> tuple[Run, ...]:
    found = []
    for path in sorted(folder.glob(f"{_escaped(run_stem(row.name))}-seed*")):
        if not re.fullmatch(r"\d+", path.name.removeprefix(f"{run_stem(row.name)}-seed")) or not is_run(path):
            continue
        try:
            run = read_run(path, trust=trust, named=row.recipe.values.get("imports", ()))
        except RecordError as error:
            if warn is not None:
                warn.append(f"{path} is left out: {error}")
            continue
        told = differences(row.recipe, run.recipe)
        if not told:
            found.append(run)
        elif warn is not None:
            warn.append(f"{path} is left out, a run of another recipe: {'; '.join(told[:3])}")
    return tuple(found)


def _changed_code(runs: Sequence[Run]) -> list[str]:
    """A line for each run whose recipe imports what is another code by now: its numbers are not of that."""
    changed = {str(run.path): RunFolder(run.path).changed_code(run.recipe.values.get("imports", ())) for run in runs}
    told = "was trained with another code of {} than there is now"
    return [f"{path} {told.format(', '.join(names))}" for path, names in changed.items() if names]


def _add_run(rows: list[Row], run: Run) -> list[Row]:
    """Puts a run into the row of its recipe, or into a new one."""
    for index, row in enumerate(rows):
        if any(other.path.resolve() == run.path.resolve() for other in row.runs):
            return rows
        if not differences(row.recipe, run.recipe):
            return [*rows[:index], replace(row, runs=(*row.runs, run)), *rows[index + 1 :]]
    name, taken = _stem(run.path), {row.name for row in rows}
    if name in taken:
        name = run.path.name if run.path.name not in taken else str(run.path)
    return [*rows, Row(name, run.recipe, (run,), _published(run.recipe, str(run.path)))]


def _published(recipe: Recipe, target: str) -> Mapping[str, Any] | None:
    try:
        return find_published(recipe.reproduces)
    except PublishedError as error:
        raise PublishedError(f"{target}: {error}") from None


def _stem(path: Path) -> str:
    """ "runs/quickstart-seed3" is a run of "quickstart"; "runs/quickstart-3" may have been given other values."""
    return re.sub(r"[-_]seed\d+$", "", path.resolve().name)


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
