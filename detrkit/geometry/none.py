"""No geometry: queries without a place (DETR)."""

from __future__ import annotations

import torch
from torch import Tensor

from detrkit.geometry.base import Decoded, Geometry
from detrkit.recipe import register
from detrkit.structures import Reference


@register("geometry", "none")
class NoGeometry(Geometry):
    """A box is the sigmoid of the offset (DETR, section 3.2).

    Whatever asks for a query's point gets the middle of the image.
    """

    holds_boxes = False
    moves = False

    def __init__(self):
        super().__init__()  # named here, because a recipe's options are a constructor's parameters
        self.offset_widths = {"box": 4}

    def encode(self, boxes: Tensor) -> Reference:
        return Reference(torch.full_like(boxes[..., :2], 0.5))

    def start(self, points: Tensor, sides: Tensor, corners: Tensor, cell: tuple[float, float]) -> Reference:
        return Reference(torch.full_like(points, 0.5))

    def decode(self, offsets: dict[str, Tensor], reference: Reference) -> Decoded:
        return Decoded(offsets["box"].sigmoid(), None)
