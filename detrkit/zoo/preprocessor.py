"""What a `preprocessor_config.json` of the package `transformers` says of images, as values of a recipe.

What no recipe can say is told. A key that the file leaves out has transformers' default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

from detrkit.backbones.needs import needs_of
from detrkit.data.choosing import evaluated_at
from detrkit.errors import CheckpointError
from detrkit.pixels import MEAN, STD
from detrkit.recipe import Recipe
from detrkit.recipe.overrides import COMMAND_LINE, plain
from detrkit.zoo.names import Config, Setting

FILE = "preprocessor_config.json"
RESAMPLING = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}
BILINEAR = 2
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
ANY_SIZE = 100_000  # pixels of a side, the most that a recipe takes


def image_settings(recipe: Recipe, said: Config) -> tuple[list[Setting], list[str]]:
    """What a recipe must say of images, and sentences on what it cannot.

    Args:
        recipe: that is to compute what the checkpoint computes, its backbone known.
        said: what stands in the file.
    """
    settings, lost = _sizes(recipe, said)
    if said.get("do_resize", True) and said.get("resample", BILINEAR) not in (None, BILINEAR):
        name = next((one for number, one in RESAMPLING.items() if number == said["resample"]), "unknown")
        lost.append(f"resample = {said['resample']!r} ({name}): images are resized bilinearly here")
    if said.get("pad_size"):
        told = "images are padded to the largest of their batch here"
        lost.append(f"pad_size = {said['pad_size']}: {told}, and predictions may depend on padding")
    return [*settings, *_pixels(recipe, said)], lost


def pixels_of(recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of RGB in [0, 1] that a recipe's backbone normalises with."""
    options = recipe.section("backbone").options
    if not {"name", "mean", "std"} <= set(options):  # a part of a package's own
        return MEAN, STD
    needs = needs_of(options["name"])
    return tuple(options["mean"] or needs.mean), tuple(options["std"] or needs.std)


def _sizes(recipe: Recipe, said: Config) -> tuple[list[Setting], list[str]]:
    """How large images are made: a square, or their shorter side and the longer one at most, or as they are."""
    at = ".".join(("data", "augment", *evaluated_at(plain(recipe.section("data").parts["augment"]))))
    kind = recipe.get(f"{at}.type")
    # The two that the recipes of these systems have, one of which may stand in the other's place.
    by_hand = any(is_set_by_hand(recipe, f"{at}.{key}") for key in ("type", "eval_size"))
    may_be = {"detr", "square"} if kind in ("detr", "square") and not by_hand else {kind}
    if not said.get("do_resize", True):
        if kind in ("none", "flip") or not by_hand:
            own = {} if kind in ("none", "flip") else {f"{at}.type": "none"}
            return _of(own | {f"{at}.max_size": ANY_SIZE}, "do_resize = False"), []
        return [], [f'do_resize = False: data.augment "{kind}" resizes images']
    size = _size(said)
    if size is None:
        return [], []
    if size.get("max_height", 0) == size.get("max_width"):  # both bound the longer side
        size = {"shortest_edge": size["max_height"], "longest_edge": size["max_height"]}
    if set(size) == {"height", "width"} and size["height"] == size["width"] and "square" in may_be:
        return _of({f"{at}.type": "square", f"{at}.eval_size": size["height"]}), []
    if set(size) == {"shortest_edge", "longest_edge"} and "detr" in may_be:
        own = {} if kind == "detr" else {f"{at}.type": "detr"}
        return _of(own | {f"{at}.eval_size": size["shortest_edge"], f"{at}.eval_max_size": size["longest_edge"]}), []
    if kind in ("detr", "square"):
        shape = "become squares" if kind == "square" else "keep their shape"
        where = f"images {shape}, by {at}.eval_size = {recipe.get(f'{at}.eval_size')}"
    else:
        where = f'sizes are what data.augment "{kind}" makes of them'
    return [], [f"size = {said['size']}: {where}"]


def _size(said: Config) -> dict[str, Any] | None:
    """The file's `size` in today's form: sides by name; None where it says nothing."""
    size = said.get("size")
    if size is None:
        return None
    if isinstance(size, Mapping):
        return {key: value for key, value in size.items() if value is not None}
    if isinstance(size, list) and len(size) == 2:
        return dict(zip(("height", "width"), size, strict=True))
    if isinstance(size, int):  # as files of before 2023 have it
        return {"shortest_edge": size, "longest_edge": said.get("max_size", 1333)}
    raise CheckpointError(f"{FILE}: size = {size!r}; accepted: sides by name, [height, width] or a shorter side")


def _pixels(recipe: Recipe, said: Config) -> list[Setting]:
    """How pixels are normalised, where the recipe does it otherwise.

    Bytes times a factor, less a mean, by a deviation, is what other means and deviations of RGB in [0, 1] make, too.
    """
    # transformers' processor of RT-DETR alone does not normalise unless it is told to.
    of_rt_detr = str(said.get("image_processor_type", "")).startswith("RTDetr")
    rescales, normalises = said.get("do_rescale", True), said.get("do_normalize", not of_rt_detr)
    factor = said.get("rescale_factor", 1 / 255) if rescales else 1.0
    if not isinstance(factor, int | float) or not factor > 0:
        raise CheckpointError(f"{FILE}: rescale_factor = {factor!r}; accepted: numbers above 0")
    scale = 1.0 if math.isclose(factor * 255, 1.0, rel_tol=1e-6) else factor * 255
    mean, std = (_colours(said, "image_mean", MEAN), _colours(said, "image_std", STD)) if normalises else (ZERO, ONE)
    mean, std = (tuple(value / scale for value in column) for column in (mean, std))
    if all(map(partial(math.isclose, rel_tol=1e-6), (*mean, *std), chain(*pixels_of(recipe)))):
        return []
    why = f"do_normalize = {normalises}"
    if scale != 1:
        why += f", rescale_factor = {factor}" if rescales else ", do_rescale = False"
    return _of({"backbone.mean": mean, "backbone.std": std}, why)


def _colours(said: Config, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = said.get(key, list(default))
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(type(one) in (int, float) for one in values):
        raise CheckpointError(f"{FILE}: {key} = {value!r}; accepted: a number, or one for each of red, green and blue")
    return tuple(map(float, values))


def _of(values: Mapping[str, Any], why: str = "") -> list[Setting]:
    return [Setting(key, value, f"{FILE}{': ' if why else ''}{why}") for key, value in values.items()]


def is_set_by_hand(recipe: Recipe, key: str) -> bool:
    """Whether the command line said a recipe's value."""
    return recipe.get(key, None) is not None and recipe.source(key) == COMMAND_LINE
