"""High-order matching cost (Rank-DETR)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from detrkit.boxes import center_to_corners, overlaps
from detrkit.matching.costs import ClassChance, Weight, pairs
from detrkit.recipe import register
from detrkit.structures import Output, Targets


@register("cost", "high_order")
class HighOrderCost(ClassChance):
    """Minus the class probability times the IoU to a power, in the place of all other costs (Rank-DETR, section 3.3).

    -p u^power. A query without any overlap costs nothing whatever its class, so that early in a training it says
    little: Rank-DETR trains three quarters of its steps with the usual costs first.

    Needs `head.objectness = true` where it asks for `objectness`.

    Args:
        weight: factor of the term.
        power: of the IoU.
        eps: in the IoU's denominator.
        objectness: p is the class probability times the objectness (SAP-DETR).
    """

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        power: Annotated[float, Field(ge=0, le=100)] = 4.0,
        eps: Annotated[float, Field(ge=0)] = 1e-6,
        objectness: bool = False,
    ):
        super().__init__(weight=weight, objectness=objectness)
        self.power, self.eps = power, eps

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        predicted, truth = pairs(center_to_corners(output.boxes), center_to_corners(targets.boxes))
        return -self.probability(output, targets) * overlaps(predicted, truth, self.eps)[0] ** self.power
