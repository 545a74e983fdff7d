"""Anchor boxes: the reference of DAB-DETR and its descendants."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from detrkit.boxes import corners_to_center, inverse_sigmoid
from detrkit.geometry.base import Decoded, Geometry
from detrkit.recipe import register
from detrkit.structures import Reference


@register("geometry", "box")
class BoxGeometry(Geometry):
    """A reference is a box (cx, cy, w, h), refined in logit space (DAB-DETR, section 4.3).

    box = sigmoid(logit(reference) + offset), which is also the next layer's reference.

    Args:
        eps: clipping of the logit, see `inverse_sigmoid`.
    """

    def __init__(self, *, eps: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3):
        super().__init__()
        self.eps = eps
        self.offset_widths = {"box": 4}

    def encode(self, boxes: Tensor) -> Reference:
        half = boxes[..., 2:] / 2
        return Reference(point=boxes[..., :2], sides=torch.cat((half, half), dim=-1))

    def start(self, points: Tensor, sides: Tensor, corners: Tensor, cell: tuple[float, float]) -> Reference:
        return self.encode(corners_to_center(Reference(points, sides).corners("a box geometry")))

    def decode(self, offsets: dict[str, Tensor], reference: Reference) -> Decoded:
        box = torch.cat((reference.point, reference.size("a box geometry")), dim=-1)
        return Decoded(torch.sigmoid(offsets["box"] + inverse_sigmoid(box, self.eps)), None)

    def move(self, offsets: dict[str, Tensor], reference: Reference) -> Reference:
        return self.encode(self.decode(offsets, reference).boxes)
