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

Eps = Annotated[float, Field(gt=0, lt=0.5)]


@register("geometry", "box")
class BoxGeometry(Geometry):
    """A reference is a box (cx, cy, w, h), refined in logit space (DAB-DETR, section 4.3).

    box = sigmoid(logit(reference) + offset), which is also the next layer's reference.

    Args:
        eps: clipping of the logit, see `inverse_sigmoid`.
        predicted_eps: the same where a prediction is made, if it is another than where the reference moves: 1e-5 in
            mmdetection.
    """

    def __init__(self, *, eps: Eps = 1e-3, predicted_eps: Eps | None = None):
        super().__init__()
        self.eps, self.predicted_eps = eps, eps if predicted_eps is None else predicted_eps
        self.offset_widths = {"box": 4}

    def encode(self, boxes: Tensor) -> Reference:
        half = boxes[..., 2:] / 2
        return Reference(point=boxes[..., :2], sides=torch.cat((half, half), dim=-1))

    def start(self, points: Tensor, sides: Tensor, corners: Tensor, cell: tuple[float, float]) -> Reference:
        return self.encode(corners_to_center(Reference(points, sides).corners("a box geometry")))

    def decode(self, offsets: dict[str, Tensor], reference: Reference) -> Decoded:
        return Decoded(_shifted(offsets, reference, self.predicted_eps), None)

    def move(self, offsets: dict[str, Tensor], reference: Reference) -> Reference:
        return self.encode(_shifted(offsets, reference, self.eps))


def _shifted(offsets: dict[str, Tensor], reference: Reference, eps: float) -> Tensor:
    """The boxes [B, N, 4] of references with offsets."""
    box = torch.cat((reference.point, reference.size("a box geometry")), dim=-1)
    return torch.sigmoid(offsets["box"] + inverse_sigmoid(box, eps))
