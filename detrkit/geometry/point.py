"""Points: the reference of Conditional and Deformable DETR."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from detrkit.boxes import inverse_sigmoid
from detrkit.geometry.base import Decoded, Geometry
from detrkit.recipe import register
from detrkit.structures import Reference


@register("geometry", "point")
class PointGeometry(Geometry):
    """A reference is a point (x, y), from which boxes are told (Conditional DETR, section 3.1; Deformable DETR, A.3).

    box = sigmoid(offset + (logit(x), logit(y), 0, 0)).

    Args:
        refined: after the first layer the reference is the box that it predicted, and every layer refines it
            (Deformable DETR, section 4.2); without it all layers share the point and train it (Conditional DETR).
        eps: clipping of the logit, see `inverse_sigmoid`.
    """

    def __init__(self, *, refined: bool = False, eps: Annotated[float, Field(gt=0, lt=0.5)] = 1e-5):
        super().__init__()
        self.moves, self.eps = refined, eps
        self.offset_widths = {"box": 4}

    def encode(self, boxes: Tensor) -> Reference:
        """The boxes' middles."""
        return Reference(point=boxes[..., :2])

    def start(self, points: Tensor, sides: Tensor, corners: Tensor, cell: tuple[float, float]) -> Reference:
        return Reference(points)

    def decode(self, offsets: dict[str, Tensor], reference: Reference) -> Decoded:
        start = inverse_sigmoid(reference.point, self.eps)
        if reference.sides is None:
            size = torch.zeros_like(start)
        else:
            size = inverse_sigmoid(reference.size("a refined point"), self.eps)
        return Decoded(torch.sigmoid(offsets["box"] + torch.cat((start, size), dim=-1)), None)

    def move(self, offsets: dict[str, Tensor], reference: Reference) -> Reference:
        boxes = self.decode(offsets, reference).boxes
        half = boxes[..., 2:] / 2
        return Reference(point=boxes[..., :2], sides=torch.cat((half, half), dim=-1))
