"""Truths in another form than the losses expect, named before they give losses that mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detrkit.errors import UserError
from detrkit.structures import Target

_FORM = "boxes [T, 4] as (cx, cy, w, h) in shares of the image and labels [T] as int64"
PIXELS_FORM = "boxes [T, 4] as (x0, y0, x1, y1) in pixels and labels [T] as int64"
"""what a truth of torchvision's form holds"""


def check_number(targets: Sequence[Target], images: int) -> None:
    """Raise UserError if there is not a truth for each of B images."""
    if len(targets) != images:
        raise UserError(f"{len(targets)} targets for a batch of {images} images; each image has one, empty or not")


def check_truths(targets: Sequence[Target], *, images: int, classes: int | None) -> None:
    """Look at the form of a batch's truths; at their values on the CPU alone, as a GPU would have to be waited for.

    Args:
        targets: what a criterion, or a detector that reads truths itself, was given.
        images: B, of the predictions.
        classes: K; labels are below it; None where nobody knows.

    Raises:
        UserError: names the image by its place in the batch, and what is expected.
    """
    check_number(targets, images)
    for index, target in enumerate(targets):
        where = f"targets[{index}]"
        check_form(target, where)
        labels, boxes = target["labels"], target["boxes"]
        # A graph of torch.compile would break off at a value.
        if labels.device.type == "cpu" and len(labels) and not torch.compiler.is_compiling():
            _check_values(labels, boxes, where, classes)


def check_form(target: Target, where: str, form: str = _FORM) -> None:
    """Raise UserError unless a truth, called `where`, has labels and boxes, of one number, the shapes and types."""
    if not isinstance(target, Mapping):
        raise UserError(f"{where} is a {type(target).__name__}; each image has a dict, which holds {form}")
    if missing := [key for key in ("labels", "boxes") if key not in target]:
        raise UserError(f"{where} has no {missing[0]!r}; a target holds {form}")
    labels, boxes = target["labels"], target["boxes"]
    for key, value in {"labels": labels, "boxes": boxes}.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{where} has {key} that are a {type(value).__name__}; a target holds tensors, {form}")
    if len(labels) != len(boxes):
        raise UserError(f"{where} has {len(labels)} labels and {len(boxes)} boxes; a target holds {form}")
    if len(boxes) and boxes.shape[1:] != (4,):
        raise UserError(f"{where} has boxes {list(boxes.shape)}; a target holds {form}")
    if labels.dtype not in (torch.int64, torch.int32):  # others count as masks where they index
        raise UserError(f"{where} has labels of {labels.dtype}; a target holds {form}")


def _check_values(labels: Tensor, boxes: Tensor, where: str, classes: int | None) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        known = "from 0 on" if classes is None else f"0 to {classes - 1}"
        raise UserError(f"{where} has the label {wrong}; labels are {known}, as the detector's classes are")
    largest = float(boxes.abs().max())
    if not largest <= 2:  # a box that is cut at the image's edge passes 1 by rounding, one in pixels by far; and nan
        raise UserError(f"{where} has a box with {largest:g} in it; a target holds {_FORM}")
    if float(boxes[:, 2:].min()) < 0:
        raise UserError(f"{where} has a box of a negative width or height; a target holds {_FORM}")
