"""The classes of an official checkpoint: how many, and what COCO calls them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detrkit.data import Category
from detrkit.data.records import Labels
from detrkit.detector import build_detector
from detrkit.errors import CheckpointError
from detrkit.recipe import Recipe
from detrkit.zoo.names import COCO_NAMES, COCO_SLOTS, Config
from detrkit.zoo.recognising import families_of, recognise

VOC_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def count_classes(official: Mapping[str, Tensor], recipe: Recipe) -> int | None:
    """How many classes an official checkpoint's class head has; None if it has no class head that is known.

    The class head is found by building the recipe's detector, without memory, for two class counts: it is what
    differs.

    Raises:
        CheckpointError: the recipe does not say whose checkpoints it takes
    """
    known = recognise(official, families_of(recipe))
    one, two = (_shapes(recipe, classes) for classes in (1, 2))
    # What differs has rows for each class, and some tables have rows beyond (a label table: "no object").
    tables = {name: (two[name][0] - one[name][0], one[name][0]) for name in one if one[name] != two[name]}
    for name, tensor in known.state.items():
        ours = known.family.ours(name)
        if ours is not None and ours in tables and tensor.ndim:
            rows, first = tables[ours]
            return (tensor.shape[0] - first) // rows + 1
    return None


def categories_of(config: Config | None, recipe: Recipe, classes: int) -> tuple[Category, ...]:
    """A checkpoint's categories: those that its configuration names, or COCO's, with COCO's ids, where these are meant.

    Some name COCO's classes as Pascal VOC's are called, and all number them by label.
    """
    named, coco = named_categories(config, classes), coco_categories(recipe, classes)
    names = [VOC_NAMES.get(category.name, category.name) for category in named]
    return coco if not named or names == [category.name for category in coco] else named


def coco_categories(recipe: Recipe, classes: int) -> tuple[Category, ...]:
    """COCO's categories where ``classes`` is the count that the recipe's official COCO checkpoints have, else none."""
    if classes != families_of(recipe)[0].coco_classes:
        return ()
    named = [Category(number, name) for number, name in COCO_NAMES.items()]
    return Labels(named, keep_ids=classes == COCO_SLOTS).categories


def named_categories(config: Config | None, classes: int) -> tuple[Category, ...]:
    """The categories that a configuration's `id2label` names, label i being the i-th; none if it names none.

    transformers calls a label without a name LABEL_3, and COCO's ids that have no category N/A.

    Raises CheckpointError if it holds no names by label.
    """
    named = (config or {}).get("id2label") or {}
    if not isinstance(named, Mapping):
        raise CheckpointError(f"config.json: id2label = {named!r}; accepted: an object of names by label")
    said = {str(key): str(name) for key, name in named.items()}
    names = [said.get(str(label), "N/A") for label in range(classes)]
    if all(name in ("N/A", f"LABEL_{label}") for label, name in enumerate(names)):
        return ()
    return tuple(
        Category.placeholder(label) if name == "N/A" else Category(label, name) for label, name in enumerate(names)
    )


def _shapes(recipe: Recipe, classes: int) -> dict[str, torch.Size]:
    sized = recipe.with_values({"detector.classes": classes})
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build_detector(sized, pretrained=False).state_dict().items()}
