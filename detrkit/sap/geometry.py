"""Salient points: the reference of SAP-DETR, a point in its grid cell and four sides around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detrkit.boxes import inverse_sigmoid
from detrkit.geometry.base import Decoded, Geometry
from detrkit.recipe import register
from detrkit.structures import Reference

Eps = Annotated[float, Field(gt=0, lt=0.5)]


@dataclass(frozen=True, kw_only=True)
class SalientReference(Reference):
    """A salient point, the corner of the cell that it moves in, and where it was one layer ago."""

    origin: Tensor
    """[B, N, 2] the cell's top left corner"""
    cell: Tensor
    """[B, N, 2] or broadcastable, (width, height) of the cell"""
    previous: Tensor
    """[B, N, 2] the point that the layer before took in; the published head starts from it"""


@register("geometry", "salient_point")
class SalientPointGeometry(Geometry):
    """A point and its distances to the four sides of its box (SAP-DETR, section 3.1 and 3.2).

    Sides are refined in logit space. The point moves within its own cell of the grid, to the right of and below
    the cell's corner: r' = origin + cell * sigmoid(logit(r - origin) + offset).

    Args:
        grid: (rows, columns) of the queries' grid, which gives the cell of an encoded box.
        movement: "bounded" by the cell (published), "free" over the image, or "fixed" (no point head at all).
        head_cell: cell that the *predicted* point may travel, as against the reference's: "own", or "published",
            the official code's constant: the own cell for 17 x 18, a twentieth of the image for any other grid.
        head_start: where the predicted point starts from: "previous", the point that the layer before took in
            (published; fact sheet, section 6, quirk 1), or "current", the reference's own point, which then also
            keeps its graph, as sides do.
        offset_unit: what the point's distance from the corner is measured in before its logit: the "image"
            (published, quirk 4: with an output of zero the distance shrinks to the cell's share of it each layer), or
            the "cell", so that an output of zero leaves the point where it is.
        eps: clipping of the logit, see `inverse_sigmoid`.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int] | None,
        movement: Literal["bounded", "free", "fixed"] = "bounded",
        head_cell: Literal["own", "published"] = "published",
        head_start: Literal["previous", "current"] = "previous",
        offset_unit: Literal["image", "cell"] = "image",
        eps: Eps = 1e-3,
    ):
        super().__init__()
        self.movement, self.eps = movement, eps
        self.head_start, self.offset_unit = head_start, offset_unit
        self.grid = tuple(grid or (17, 18))
        self.head_cell = 1 / 20 if head_cell == "published" and self.grid != (17, 18) else None
        self.offset_widths = {"box": 4} if movement == "fixed" else {"box": 4, "point": 2}

    def encode(self, boxes: Tensor) -> SalientReference:
        """The point is the box's middle, its cell the grid's cell around that."""
        rows, columns = self.grid
        point, half = boxes[..., :2], boxes[..., 2:] / 2
        cell = point.new_tensor([1 / columns, 1 / rows]).expand_as(point)
        origin = ((point / cell).floor() * cell).clamp(min=0)
        sides = torch.cat((half, half), dim=-1)
        return SalientReference(point=point, sides=sides, origin=origin, cell=cell, previous=point)

    def start(self, points: Tensor, sides: Tensor, corners: Tensor, cell: tuple[float, float]) -> SalientReference:
        spacing = points.new_tensor(cell).expand_as(points)
        return SalientReference(point=points, sides=sides, origin=corners, cell=spacing, previous=points)

    def _moved_point(self, offsets: dict[str, Tensor], start: Tensor, reference: SalientReference, cell) -> Tensor:
        if self.movement == "fixed":
            return start
        if self.movement == "free":
            return torch.sigmoid(inverse_sigmoid(start, self.eps) + offsets["point"])
        distance = start - reference.origin
        if self.offset_unit == "cell":
            distance = distance / cell
        return reference.origin + cell * torch.sigmoid(inverse_sigmoid(distance, self.eps) + offsets["point"])

    def _moved_sides(self, offsets: dict[str, Tensor], reference: SalientReference) -> Tensor:
        return torch.sigmoid(inverse_sigmoid(reference.sides, self.eps) + offsets["box"])

    def decode(self, offsets: dict[str, Tensor], reference: SalientReference) -> Decoded:
        cell = reference.cell if self.head_cell is None else self.head_cell
        start = reference.previous if self.head_start == "previous" else reference.point
        point = self._moved_point(offsets, start, reference, cell)
        low, high = self._moved_sides(offsets, reference).chunk(2, dim=-1)
        return Decoded(torch.cat((point + (high - low) / 2, low + high), dim=-1), point)

    def move(self, offsets: dict[str, Tensor], reference: SalientReference) -> SalientReference:
        return SalientReference(
            point=self._moved_point(offsets, reference.point, reference, reference.cell),
            sides=self._moved_sides(offsets, reference),
            origin=reference.origin,
            cell=reference.cell,
            previous=reference.point,
        )
