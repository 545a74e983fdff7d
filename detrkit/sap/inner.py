"""SAP-DETR's inner rule: a query answers only for objects that its point lies in."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from detrkit.boxes import center_to_corners
from detrkit.errors import UserError
from detrkit.losses.base import Loss
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
    """The predicted points [Y, B, N, 2], or a UserError that names who needs them."""
    if output.points is None:
        raise UserError(f"{asker} needs a geometry that predicts points, such as 'salient_point'")
    return output.points


@register("cost", "inner")
class InnerCost(Cost):
    """1 where the predicted point lies outside the object's box, else 0 (SAP-DETR, section 3.2).

    Needs a geometry that predicts points: "salient_point".

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
    """Keeps matched points inside their objects (SAP-DETR, section 3.2).

    A sum over pairs, over the number of objects.

    Needs a geometry that predicts points: "salient_point".

    Args:
        weight: factor of the term.
        form: "count", the number of points outside (published: it has no gradient and only shows in the log and the
            total), or "distance", the sum of how far they are outside, as a share of the image, which has one.
    """

    def __init__(self, *, weight: Weight = 2.0, form: Literal["count", "distance"] = "count"):
        self.weight, self.form = weight, form

    def applies_to(self, output: Output) -> bool:
        return output.points is not None

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        points = matches.take(require_points(output, "the loss 'inner'"))
        inside = inner_distance(points, center_to_corners(matches.take_targets(targets.boxes)))
        outside = (inside < 0).to(points.dtype) if self.form == "count" else (-inside).clamp(min=0)
        return outside.sum(1) / objects
