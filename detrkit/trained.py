"""A trained detector with what belongs to it: out of a run, or of a recipe and a file of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.errors import CheckpointError, UserError
from detrkit.paths import with_home

if TYPE_CHECKING:
    from detrkit.data import Category, DataSource
    from detrkit.recipe import Recipe
    from detrkit.system import BaseDetector


@dataclass(frozen=True)
class Trained:
    """A detector in evaluation mode on the CPU, and what belongs to it.

    Args:
        origin: the file that the weights came from
        step: the optimiser step that they are of; None where the file does not say
        has_other_data: whether it is to see other data than the run was trained with
        folder: the run's folder; None for a recipe with weights
        notes: what a person should know about how it was opened
    """

    recipe: Recipe
    detector: BaseDetector
    source: DataSource
    categories: tuple[Category, ...]
    origin: Path
    folder: Path | None
    step: int | None
    has_other_data: bool = False
    notes: tuple[str, ...] = ()


def open_trained(
    target: str,
    overrides: Sequence[str],
    *,
    which: str | None = None,
    weights: Path | None = None,
    data: Path | None = None,
    trust: bool = False,
) -> Trained:
    """Open a run's folder, or a recipe with a file of weights.

    Args:
        overrides: ``key=value``, laid over the recipe
        which: which checkpoint of a run, "best" or "last"; "best" if None, and only None where there is no choice
        weights: a .safetensors file of the detector's weights; only, and always, with a recipe
        data: the folder of a data set, in place of the recipe's
        trust: see `load_recipe`

    Raises:
        UserError: neither a run nor a recipe, weights that do not fit or are not finite, ...
    """
    from detrkit.recipe.library import find_recipe
    from detrkit.recipe.problems import nearest
    from detrkit.runs.checkpoint import locate
    from detrkit.runs.history import is_run

    overrides = list(overrides)
    path = with_home(target)
    is_of_run = is_run(path) or is_run(path.parent)  # a project of `detrkit init` is a recipe
    if path.is_dir() and (weights is None or is_of_run):
        if weights is not None:
            raise UserError(f"{target} is a run, which has weights of its own; --weights goes with a recipe")
        run, folder = locate(path, which or "best")
        if which is not None and folder == path:
            raise UserError(f"{target} is one checkpoint of a run; --which chooses where the run itself is named")
        return _open_run(run, folder, overrides, data, trust)
    if weights is None and not path.exists() and find_recipe(target) is None:
        runs = [str(one) for one in path.parent.glob("*") if is_run(one)]
        raise UserError(f"{target}: there is no such run{nearest(target, runs)}")
    if weights is None:
        raise UserError(
            f"{target} is not the folder of a run; for a recipe, name its weights with --weights FILE "
            "(in Python: weights=FILE)"
        )
    if which is not None:
        raise UserError("--which chooses among the checkpoints of a run; --weights is one file")
    return _open_recipe(target, weights, overrides, data, trust)


def _open_run(run: Path, folder: Path, overrides: list[str], data: Path | None, trust: bool) -> Trained:
    from detrkit.runs.checkpoint import (
        AVERAGE,
        WEIGHTS,
        build_trained,
        metadata_number,
        read_categories,
        read_weights,
    )
    from detrkit.runs.recipes import trained_recipe
    from detrkit.runs.run_folder import RunFolder

    origin = folder / (AVERAGE if (folder / AVERAGE).is_file() else WEIGHTS)
    state, metadata = read_weights(origin)
    recipe, notes = trained_recipe(run, origin, metadata, overrides, trust=trust)
    before = trained_recipe(run, origin, metadata, trust=trust)[0] if overrides else recipe
    recipe = _as_trained(_on_data(recipe, data), metadata)
    categories = read_categories(run / RunFolder.CATEGORIES, metadata)
    own, asked = (r.full_values()["data"] | {"augment": None} for r in (before, recipe))
    return Trained(
        recipe=recipe,
        detector=build_trained(recipe, state, origin),
        source=recipe.section("data")(),
        categories=categories,
        origin=origin,
        folder=run,
        step=metadata_number(metadata, "step"),
        has_other_data=own != asked,
        notes=tuple(notes),
    )


def _open_recipe(name: str, weights: Path, overrides: list[str], data: Path | None, trust: bool) -> Trained:
    from detrkit.data import Category
    from detrkit.recipe import load_recipe
    from detrkit.runs.checkpoint import build_trained, metadata_number, parse_categories, read_weights

    state, metadata = read_weights(weights)
    recipe = _as_trained(_on_data(load_recipe(name, overrides, trust=trust), data), metadata)
    source = recipe.section("data")()
    if "categories" in metadata:
        try:
            categories = parse_categories(metadata["categories"])
        except ValueError as error:
            raise CheckpointError(f"{weights}: the categories in its metadata cannot be used: {error}") from None
    else:
        classes = recipe.get("detector.classes") or metadata_number(metadata, "classes")
        try:
            categories = source.categories
        except UserError:
            if not classes:
                raise
            categories = ()
        if classes and len(categories) != classes:  # no data set, or another one than the weights are of
            categories = tuple(Category(label, f"class {label}") for label in range(classes))
    if recipe.get("detector.classes") is None:
        recipe = recipe.with_values({"detector.classes": metadata_number(metadata, "classes") or len(categories)})
    detector, step = build_trained(recipe, state, weights), metadata_number(metadata, "step")
    return Trained(recipe, detector, source, categories, weights, None, step)


def _on_data(recipe: Recipe, data: Path | None) -> Recipe:
    if data is None:
        return recipe
    if "root" in recipe.section("data").options:
        return recipe.with_values({"data.root": str(data)}, source="--data")
    changed = {"data.type": "auto", "data.root": str(data), "data.augment": recipe.section("data").parts["augment"]}
    return recipe.with_values(changed, source="--data")


def _as_trained(recipe: Recipe, metadata: Mapping[str, str]) -> Recipe:
    """The recipe with the mean and deviation of the weights, where it leaves them to timm, whose word may change."""
    from detrkit.runs.checkpoint import parse_pixels

    options = recipe.section("backbone").options
    kept = {f"backbone.{key}": value for key, value in parse_pixels(metadata).items() if options.get(key, 0) is None}
    return recipe.with_values(kept, source="weights") if kept else recipe


def check_categories(trained: Trained) -> None:
    """Raise CheckpointError unless label i is called the same in the data set as where the detector was trained."""
    ours, theirs = trained.categories, trained.source.categories
    for label in range(max(len(ours), len(theirs))):
        first = ours[label].name if label < len(ours) else "no class"
        second = theirs[label].name if label < len(theirs) else "no class"
        if first != second:
            raise CheckpointError(
                f"{trained.origin} was trained on other classes than the data set has: class {label} is {first!r} "
                f"there and {second!r} here ({len(ours)} and {len(theirs)} classes in all)"
            )
