"""SAP-DETR's inner rule: a query answers only for objects that its point lies in."""

from __future__ import annotations

from torch import Tensor

from detrkit.boxes import center_to_corners
from detrkit.losses.terms import Loss
from detrkit.matching.costs import Cost, Weight, pairs
from detrkit.recipe import register
from detrkit.structures import Matches, Output, Targets


def inner_distance(points: Tensor, corners: Tensor) -> Tensor:
    """How far a point is inside a box: the least of its four signed distances to the sides.

    Points [..., 2] and corner boxes [..., 4] broadcast to [...]; negative outside, 0 on an edge.
    """
    low, high = points - corners[..., :2], corners[..., 2:] - points
    return low.minimum(high).amin(-1)


def require_points(output: Output, asker: str) -> Tensor:
    """The predicted points [Y, B, N, 2]."""
    if output.points is None:
        raise ValueError(f"{asker} needs a geometry that predicts points, such as 'salient_point'")
    return output.points


@register("cost", "inner")
class InnerCost(Cost):
    """1 where the predicted point lies outside the object's box, else 0 (SAP-DETR, section 3.2).

    Args:
        weight: factor of the term; the published one forbids such pairs as long as others are left.
    """

    def __init__(self, *, weight: Weight = 9999.0):
        self.weight = weight

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        points, corners = pairs(require_points(output, "the cost 'inner'"), center_to_corners(targets.boxes))
        return (inner_distance(points, corners) < 0).to(output.boxes.dtype)


@register("loss", "inner")
class InnerLoss(Loss):
    """The number of matched points outside their object.

    Published as a count: it has no gradient and only shows in the log and the total.

    Args:
        weight: factor of the term.
    """

    def __init__(self, *, weight: Weight = 2.0):
        self.weight = weight

    def applies_to(self, output: Output) -> bool:
        return output.points is not None

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        points = matches.take(require_points(output, "the loss 'inner'"))
        corners = center_to_corners(matches.take_targets(targets.boxes))
        return (inner_distance(points, corners) < 0).to(points.dtype).sum(1) / objects
