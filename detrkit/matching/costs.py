"""What a match costs: terms of the matcher's sum, [Y, B, N, T] each."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detrkit.boxes import center_to_corners, overlaps
from detrkit.errors import UserError, lacking
from detrkit.recipe import define_slot, register
from detrkit.structures import Output, Targets

Weight = Annotated[float, Field(ge=0, le=1e6)]
BoxForm = Literal["center", "corners"]


class Cost:
    """One term; the matcher multiplies it by `weight`."""

    weight: float
    needs: tuple[str, ...] = ()
    """options of the head that it cannot do without"""

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        """The cost [Y, B, N, T] of giving object t of its image to query n."""
        raise lacking(self, Cost.__call__)


define_slot("cost", offers=(), base=Cost)


def in_form(boxes: Tensor, form: BoxForm) -> Tensor:
    """Boxes (cx, cy, w, h) as they are, or as corners."""
    return boxes if form == "center" else center_to_corners(boxes)


def pairs(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions [Y, B, N, F] and truths [B, T, F] shaped so that they broadcast to [Y, B, N, T, F]."""
    return predicted[:, :, :, None], truth[None, :, None]


class ClassChance(Cost):
    """A cost that asks how probable the object's class is.

    Args:
        weight: factor of the term.
        objectness: times the objectness (SAP-DETR).
    """

    def __init__(self, *, weight: float, objectness: bool):
        self.weight, self.objectness = weight, objectness
        self.needs = ("objectness",) if objectness else ()

    def probability(self, output: Output, targets: Targets) -> Tensor:
        """p [Y, B, N, T] of each object's class at each query."""
        index = targets.labels[None, :, None].expand(*output.logits.shape[:3], -1)
        p = output.logits.gather(-1, index).sigmoid()
        if self.objectness:
            if output.objectness is None:
                raise UserError("matcher.costs: objectness = true needs head.objectness = true")
            p = p * output.objectness.sigmoid()
        return p


@register("cost", "focal")
class FocalCost(ClassChance):
    """The focal loss that the query would have for the object's class, less what it has without.

    alpha (1 - p)^gamma (-ln(p + eps)) - (1 - alpha) p^gamma (-ln(1 - p + eps)) at the object's class, as Deformable
    DETR matches.

    Needs `head.objectness = true` where it asks for `objectness`.

    Args:
        weight: factor of the term.
        alpha, gamma: of the focal loss.
        objectness: p is the class probability times the objectness (SAP-DETR).
        log_eps: eps; 1e-6 in Relation DETR, 1e-12 in mmdetection.
    """

    def __init__(
        self,
        *,
        weight: Weight = 2.0,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.25,
        gamma: Annotated[float, Field(ge=0, le=100)] = 2.0,
        objectness: bool = False,
        log_eps: Annotated[float, Field(gt=0, le=1e-3)] = 1e-8,
    ):
        super().__init__(weight=weight, objectness=objectness)
        self.alpha, self.gamma, self.log_eps = alpha, gamma, log_eps

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        p = self.probability(output, targets)
        positive = self.alpha * (1 - p) ** self.gamma * -torch.log(p + self.log_eps)
        negative = (1 - self.alpha) * p**self.gamma * -torch.log(1 - p + self.log_eps)
        return positive - negative


@register("cost", "softmax")
class SoftmaxCost(Cost):
    """Minus the object's class probability, by a softmax over all logits (DETR, section 3.1).

    Needs `head.background = true`.

    Args:
        weight: factor of the term.
    """

    needs = ("background",)

    def __init__(self, *, weight: Weight = 1.0):
        self.weight = weight

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        index = targets.labels[None, :, None].expand(*output.logits.shape[:3], -1)
        return -output.logits.softmax(-1).gather(-1, index)


@register("cost", "l1")
class L1Cost(Cost):
    """The sum of absolute differences of the boxes' four numbers (DETR, section 3.1).

    Args:
        weight: factor of the term.
        form: numbers compared: "center" (cx, cy, w, h), or "corners" (SAP-DETR).
    """

    def __init__(self, *, weight: Weight = 5.0, form: BoxForm = "center"):
        self.weight, self.form = weight, form

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        return torch.cdist(
            in_form(output.boxes, self.form),
            in_form(targets.boxes, self.form).expand(len(output.boxes), -1, -1, -1),
            p=1,
        )


@register("cost", "giou")
class GIoUCost(Cost):
    """Minus the generalised IoU (DETR, section 3.1).

    GIoU = I / (U + eps) - (E - U) / (E + eps), E the area of the smallest box around both (Rezatofighi et al., CVPR
    2019).

    Args:
        weight: factor of the term.
        eps: added to union and enclosing area; 1e-6 in the DAB family, 0 in DETR.
    """

    def __init__(self, *, weight: Weight = 2.0, eps: Annotated[float, Field(ge=0)] = 1e-6):
        self.weight, self.eps = weight, eps

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        predicted, truth = pairs(center_to_corners(output.boxes), center_to_corners(targets.boxes))
        return -overlaps(predicted, truth, self.eps)[1]
