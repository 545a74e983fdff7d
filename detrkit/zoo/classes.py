"""The classes of an official checkpoint: how many, and what COCO calls them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detrkit.data import Category
from detrkit.data.records import Labels
from detrkit.detector import build_detector
from detrkit.recipe import Recipe
from detrkit.zoo.convert import family_of

# COCO's own ids, which the official DETR codes use as labels: 91 outputs, of which 11 are never trained.
COCO_SLOTS = 91
COCO_NAMES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9:
    "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16:
    "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra",
    25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35:
    "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41:
    "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork",
    49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56:
    "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64:
    "potted plant", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75:
    "remote", 76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82:
    "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90:
    "toothbrush",
}  # fmt: skip


def count_classes(official: Mapping[str, Tensor], recipe: Recipe) -> int | None:
    """How many classes an official checkpoint's class head has; None if it has no class head that is known.

    The class head is found by building the recipe's detector, without memory, for two class counts: it is what
    differs.

    Raises:
        CheckpointError: the recipe does not say whose checkpoints it takes
    """
    family = family_of(recipe)
    one, two = (_shapes(recipe, classes) for classes in (1, 2))
    # What differs has a row for each class, and some tables have rows beyond (a label table: "no object").
    beyond = {name: one[name][0] - 1 for name in one if one[name] != two[name]}
    counts = [
        tensor.shape[0] - beyond[family.ours(name)]
        for name, tensor in official.items()
        if family.ours(name) in beyond and tensor.ndim
    ]
    return counts[0] if counts else None


def coco_categories(classes: int) -> tuple[Category, ...]:
    """COCO's categories where ``classes`` is the count that official COCO checkpoints have, else none."""
    if classes != COCO_SLOTS:
        return ()
    return Labels([Category(number, name) for number, name in COCO_NAMES.items()], keep_ids=True).categories


def _shapes(recipe: Recipe, classes: int) -> dict[str, torch.Size]:
    sized = recipe.with_values({"detector.classes": classes, "backbone.pretrained": False})
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build_detector(sized).state_dict().items()}
