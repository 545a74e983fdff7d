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
        eps: clipping of the logit, see `inverse_sigmoid`.

    The official heads start from the point that the layer before took in, not from the current one (fact sheet,
    section 6, quirk 1), and do not divide the offset by the cell before its logit (quirk 4). Both are kept.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int] | None,
        movement: Literal["bounded", "free", "fixed"] = "bounded",
        head_cell: Literal["own", "published"] = "published",
        eps: Eps = 1e-3,
    ):
        super().__init__()
        self.movement, self.eps = movement, eps
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

    def start(self, points: Tensor, sides: Tensor, cell: tuple[float, float]) -> SalientReference:
        spacing = points.new_tensor(cell).expand_as(points)
        return SalientReference(point=points, sides=sides, origin=points, cell=spacing, previous=points)

    def _moved_point(self, offsets: dict[str, Tensor], start: Tensor, reference: SalientReference, cell) -> Tensor:
        if self.movement == "fixed":
            return reference.origin
        if self.movement == "free":
            return torch.sigmoid(inverse_sigmoid(start, self.eps) + offsets["point"])
        inside = inverse_sigmoid(start - reference.origin, self.eps)
        return reference.origin + cell * torch.sigmoid(inside + offsets["point"])

    def _moved_sides(self, offsets: dict[str, Tensor], reference: SalientReference) -> Tensor:
        return torch.sigmoid(inverse_sigmoid(reference.sides, self.eps) + offsets["box"])

    def decode(self, offsets: dict[str, Tensor], reference: SalientReference) -> Decoded:
        cell = reference.cell if self.head_cell is None else self.head_cell
        point = self._moved_point(offsets, reference.previous, reference, cell)
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
