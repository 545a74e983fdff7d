"""What a recipe's detector costs, without building it for real: shapes on the meta device tell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import torch

from detrkit.compare.workload import ModelWorkload, measure_workload
from detrkit.data.transforms import resized
from detrkit.detector import build_detector, classes_of_data
from detrkit.errors import UserError
from detrkit.recipe import Recipe

ASSUMED_CLASSES = 80  # COCO's; a recipe may leave the number to a data set that is not here
SHORT_SIDE, LONG_SIDE = 800, 1333


@dataclass(frozen=True)
class Costs:
    """Parameters and multiply-adds of a detector.

    work: for one image of the asked size.
    coco_mean: mean multiply-adds over the first 100 images of COCO val2017, shorter side 800, longer at most 1333;
        None if it was not asked for.
    assumed_classes: the class count, where the recipe leaves it to a data set that is not here.
    """

    work: ModelWorkload
    coco_mean: float | None
    assumed_classes: int | None


def count_costs(
    recipes: Mapping[str, Recipe],
    *,
    height: int,
    width: int,
    coco_mean: bool = False,
    progress: Callable[[], None] | None = None,
    faults: dict[str, UserError] | None = None,
) -> dict[str, Costs]:
    """Count the detectors of recipes, by name; those that are the same detector once.

    Args:
        progress: called `counts_of(coco_mean)` times for each recipe.
        faults: takes the recipes whose parts do not go together, with what is said of each; they are left out.

    Raises UserError for the first such recipe, by its name, where `faults` is None.
    """
    known: dict[str, Costs] = {}
    found = {}
    for name, recipe in recipes.items():
        counted, assumed = for_counting(recipe)
        key = _detector_of(counted)
        if key in known:
            if progress is not None:
                for _ in range(counts_of(coco_mean)):
                    progress()
        else:
            try:
                known[key] = _measure(counted, assumed, height, width, coco_mean, progress)
            except UserError as error:
                if faults is None:
                    raise UserError(f"{name}: {error}") from error
                faults[name] = error
                continue
        found[name] = known[key]
    return found


def counts_of(coco_mean: bool) -> int:
    """How many sizes are counted for one recipe."""
    return 1 + (len(coco_sizes()) if coco_mean else 0)


def _measure(
    counted: Recipe,
    assumed: int | None,
    height: int,
    width: int,
    coco_mean: bool,
    progress: Callable[[], None] | None,
) -> Costs:
    """A recipe's costs; progress: called after each size that was counted."""
    try:
        with torch.device("meta"):
            detector = build_detector(counted)
        work = measure_workload(detector, height=height, width=width)
    except (RuntimeError, NotImplementedError):  # a part that needs real numbers, to be built or to run
        detector = build_detector(counted)
        work = measure_workload(detector, height=height, width=width)
    told = progress or (lambda: None)
    told()
    mean = None
    if coco_mean:
        total = 0
        for (tall, wide), images in coco_sizes().items():
            total += images * measure_workload(detector, height=tall, width=wide).total.multiply_adds
            told()
        mean = total / sum(coco_sizes().values())
    return Costs(work, mean, assumed)


def for_counting(recipe: Recipe) -> tuple[Recipe, int | None]:
    """The recipe without weights to fetch and with a class count; and that count, if it had to be assumed.

    Where the recipe leaves it to its data set, that is asked, and COCO's is assumed if the data are not here.
    """
    without_weights = {
        f"backbone.{key}": value
        for key, value in (("pretrained", False), ("weights", None))
        if recipe.get(f"backbone.{key}", None) not in (None, False)
    }
    counted = recipe.with_values(without_weights)
    if recipe.get("detector.classes", None) is not None:
        return counted, None
    try:
        return counted.with_values({"detector.classes": classes_of_data(recipe)}), None
    except UserError:
        return counted.with_values({"detector.classes": ASSUMED_CLASSES}), ASSUMED_CLASSES


_NOT_THE_DETECTOR = ("train", "evaluate", "data", "matcher", "losses", "detect")


def _detector_of(recipe: Recipe) -> str:
    """What a recipe says of its detector."""
    rows = [(path, value) for path, value, _ in recipe.rows()]
    return repr([row for row in rows if len(row[0]) > 1 and row[0][0] not in _NOT_THE_DETECTOR])


@lru_cache(maxsize=1)
def coco_sizes() -> Counter[tuple[int, int]]:
    """How many of the first 100 images of COCO val2017 have each (height, width) after resizing.

    First in the order of image ids, in which torchvision's CocoDetection, and so DETR's code, reads them.
    """
    text = files("detrkit.zoo").joinpath("coco_val2017_sizes.json").read_text(encoding="utf-8")
    rows = json.loads(text)["sizes"]
    return Counter(resized(height, width, SHORT_SIDE, LONG_SIDE) for height, width in rows)
