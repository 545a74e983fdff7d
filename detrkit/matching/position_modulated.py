"""Position-modulated cost (Stable-DINO)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from detrkit.boxes import center_to_corners, overlaps
from detrkit.matching.costs import FocalCost, Weight, pairs
from detrkit.recipe import register
from detrkit.structures import Output, Targets


@register("cost", "position_modulated")
class PositionModulatedCost(FocalCost):
    """The focal cost, of class probabilities that are cut down where the box is off (Stable-DINO, section 3.3).

    p becomes p s^power with s = (GIoU + 1) / 2, divided by the largest s of the image.

    The official code writes s into a table by class, one batch for all, so that objects of one class share the last
    one's s, and an image's largest is over the other images' objects too; the paper has neither.

    Needs `head.objectness = true` where it asks for `objectness`.

    Args:
        weight: factor of the term.
        alpha, gamma: of the focal loss.
        power: how strongly the box counts; 0 is the focal cost.
        eps: in the GIoU's denominators.
        objectness: p is the class probability times the objectness (SAP-DETR).
    """

    def __init__(
        self,
        *,
        weight: Weight = 2.0,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.25,
        gamma: Annotated[float, Field(ge=0, le=100)] = 2.0,
        power: Annotated[float, Field(ge=0, le=100)] = 0.5,
        eps: Annotated[float, Field(ge=0)] = 1e-6,
        objectness: bool = False,
    ):
        super().__init__(weight=weight, alpha=alpha, gamma=gamma, objectness=objectness)
        self.power, self.eps = power, eps

    def probability(self, output: Output, targets: Targets) -> Tensor:
        predicted, truth = pairs(center_to_corners(output.boxes), center_to_corners(targets.boxes))
        share = (overlaps(predicted, truth, self.eps)[1].clamp(min=-1) + 1) / 2  # rounding passes -1
        if share.numel():
            there = share.masked_fill(~targets.filled[:, None] | share.isnan(), 0.0)  # a broken box is its own affair
            share = share * (1 / (there.amax((2, 3), keepdim=True) + 1e-8)).clamp(min=1)
        return super().probability(output, targets) * share**self.power
