"""Which recipe speaks for what in a run: each checkpoint is of the recipe that it was trained with."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.recipe import Recipe, RecipeError, load_run_recipe, parse_recipe
from detrkit.recipe.overrides import COMMAND_LINE
from detrkit.recipe.problems import dotted, format_value
from detrkit.runs.checkpoint import WEIGHTS, find_folder, read_metadata
from detrkit.runs.run_folder import RunFolder

# Sections that say how a detector is trained, not what a trained one computes.
TRAINING = ("title", "description", "reproduces", "imports", "train", "evaluate", "data", "losses", "matcher", "blocks")
PLACES = ("root", "train", "val")  # keys of `data` that say where it lies, which may move


def trained_recipe(
    run: Path, origin: Path, metadata: Mapping[str, str], overrides: Sequence[str] = (), *, trust: bool = False
) -> tuple[Recipe, list[str]]:
    """The recipe that a checkpoint of a run was trained with, and what a person should know about it.

    It is kept in the weights' metadata; where data lies is the run's own word, since it may have moved. A run's
    recipe.toml stands in where the metadata has no recipe, or one that cannot be read.

    Args:
        origin: the file of weights; metadata: its.
        overrides: laid over it last.
        trust: see `load_recipe`.

    Raises UserError if neither recipe can be used, an override is wrong, or code is not trusted.
    """
    saved = run / RunFolder.RECIPE
    text = metadata.get("recipe", "")
    if "\n" not in text.strip():  # none, or a name
        return load_run_recipe(run, overrides, trust=trust), []
    try:
        recipe = parse_recipe(text, origin, run=run, trust=trust)
    except RecipeError as error:
        return load_run_recipe(run, overrides, trust=trust), [
            f"the recipe kept in {origin} cannot be used, so {saved} speaks for it: {error}"
        ]
    if overrides:
        recipe = parse_recipe(text, origin, overrides, run=run, trust=trust)
    own, now = _parsed(text), _parsed_file(saved)
    places = _places(recipe, now)
    if places:
        recipe = recipe.with_values(places, source=str(saved))
    changed = [line for key, line in changes(own, now) if key[0] not in TRAINING] if now else []
    told = f"{saved} says otherwise than {origin} was trained with, which counts here: {'; '.join(changed[:4])}"
    return recipe, [told] if changed else []


def run_recipe(run: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """The recipe that a run goes on with: its recipe.toml, or its last checkpoint's own where that file is damaged.

    Raises UserError if neither can be used, or an override is wrong.
    """
    saved = run / RunFolder.RECIPE
    folder = find_folder(run / "last")
    if _parsed_file(saved) or folder is None:
        return load_run_recipe(run, overrides, trust=trust)
    return trained_recipe(run, folder / WEIGHTS, read_metadata(folder / WEIGHTS), overrides, trust=trust)[0]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """The keys whose values differ between two whole recipes (plain values), each with "train.epochs: 2, now 4"."""
    ours, theirs = dict(_rows(before)), dict(_rows(after))
    found = []
    for path in dict.fromkeys([*ours, *theirs]):
        was, now = (format_value(side[path]) if path in side else "not set" for side in (ours, theirs))
        if was != now:
            found.append((path, f"{dotted(path)}: {was}, now {now}"))
    return found


def _rows(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _rows(value, (*path, key))
        else:
            yield (*path, key), value


def _places(recipe: Recipe, saved: Mapping[str, Any]) -> dict[str, Any]:
    data = saved.get("data")
    if not isinstance(data, Mapping) or data.get("type") != recipe.get("data.type"):
        return {}
    return {
        f"data.{key}": data[key]
        for key in PLACES
        if key in data and str(recipe.source_of(("data", key))) != COMMAND_LINE
    }


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _parsed_file(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}
