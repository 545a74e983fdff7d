"""Salient points: the reference of SAP-DETR, a point in its grid cell and four sides around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detrkit.boxes import center_to_corners, inverse_sigmoid
from detrkit.errors import UserError
from detrkit.geometry.base import Decoded, Geometry
from detrkit.layers import constant
from detrkit.recipe import register
from detrkit.structures import Reference

Eps = Annotated[float, Field(gt=0, lt=0.5)]
Rows = Annotated[int, Field(ge=1, le=1000)]
Grid = tuple[Rows, Rows]
PUBLISHED_GRID = (17, 18)


@dataclass(frozen=True, kw_only=True)
class SalientReference(Reference):
    """A salient point, the corner of the cell that it moves in, and where it was one layer ago."""

    sides: Tensor
    origin: Tensor
    """[B, N, 2] the cell's top left corner"""
    cell: Tensor
    """[B, N, 2] or broadcastable, (width, height) of the cell"""
    previous: Tensor
    """[B, N, 2] the point that the layer before took in; the published head starts from it"""

    def cells(self) -> Tensor:
        return torch.cat((self.origin, self.origin + self.cell.expand_as(self.origin)), dim=-1)


@register("geometry", "salient_point")
class SalientPointGeometry(Geometry):
    """A point and its distances to the four sides of its box (SAP-DETR, section 3.1 and 3.2).

    Sides are refined in logit space. The point moves within its own cell of the grid, to the right of and below
    the cell's corner: r' = origin + cell * sigmoid(logit(r - origin) + offset).

    Args:
        grid: (rows, columns) of the grid whose cell an encoded box gets; "none": the queries' own grid, and 17 x 18
            for queries that have none.
        movement: "bounded" by the cell (published), "free" over the image, or "fixed" (no point head at all).
        head_cell: cell that the predicted point may travel, as against the reference's: "own", or "published",
            the official code's constant: the own cell for 17 x 18, a twentieth of the image for any other grid.
        head_start: where the predicted point starts from: "previous", the point that the layer before took in
            (published), or "current", the reference's own point, which then also
            keeps its graph, as sides do.
        offset_unit: what the point's distance from the corner is measured in before its logit: the "image"
            (published: with an output of zero the distance shrinks to the cell's share of it each layer), or
            the "cell", so that an output of zero leaves the point where it is.
        eps: clipping of the logit, see `inverse_sigmoid`.
    """

    size_offsets = (0, 1, 2, 3)

    def __init__(
        self,
        *,
        grid: Grid | None = None,
        movement: Literal["bounded", "free", "fixed"] = "bounded",
        head_cell: Literal["own", "published"] = "published",
        head_start: Literal["previous", "current"] = "previous",
        offset_unit: Literal["image", "cell"] = "image",
        eps: Eps = 1e-3,
    ):
        super().__init__()
        self.movement, self.eps = movement, eps
        self.head_start, self.offset_unit = head_start, offset_unit
        self.grid, self.has_own_grid = tuple(grid or PUBLISHED_GRID), grid is not None
        self.published_cell = head_cell == "published"
        self.offset_widths = {"box": 4} if movement == "fixed" else {"box": 4, "point": 2}

    @property
    def head_cell(self) -> float | None:
        """The width and height of the cell that predicted points travel, as a share of the image; None: their own."""
        return 1 / 20 if self.published_cell and self.grid != PUBLISHED_GRID else None

    def on_grid(self, grid: tuple[int, int]) -> None:
        if self.has_own_grid and self.grid != tuple(grid):
            raise UserError(
                f"geometry.grid = {list(self.grid)}, but the queries stand on a grid of {list(grid)}; leave "
                'geometry.grid out, or "none", to have theirs'
            )
        self.grid = tuple(grid)

    def encode(self, boxes: Tensor) -> SalientReference:
        """The point is the box's middle, its cell the grid's cell around that."""
        return self._around(boxes[..., :2], center_to_corners(boxes))

    def encode_noised(self, boxes: Tensor, truth: Tensor, positive: Tensor, place: Tensor) -> SalientReference:
        """Points inside the noised boxes that keep the inner rule; there is no official code.

        A positive's point is drawn uniformly where the noised box and its object overlap. A negative's point is drawn
        in the largest of the four strips of the noised box beside the object, or, if all of the box lies in the
        object, in the largest such strip of the image; so it lies in its object only if that fills the image. Draws
        keep a twentieth of the way from edges. Sides are the distances to the noised box's edges, 0 beyond them.
        """
        noised = center_to_corners(boxes).clamp(0, 1)
        true = center_to_corners(truth)
        shared = torch.cat((noised[..., :2].maximum(true[..., :2]), noised[..., 2:].minimum(true[..., 2:])), dim=-1)
        room = torch.where(positive[..., None], shared, _room_beside(noised, true))
        low, high = room.chunk(2, dim=-1)
        point = low + (0.05 + 0.9 * place) * (high - low)
        held = point.maximum(true[..., :2]).minimum(true[..., 2:])  # rounding; boxes thinner than the logit's clipping
        return self._around(torch.where(positive[..., None], held, point).clamp(0, 1), center_to_corners(boxes))

    def _around(self, point: Tensor, corners: Tensor) -> SalientReference:
        """A point [..., 2] with its distances to a box's corners [..., 4], in the grid's cell around it."""
        rows, columns = self.grid
        cell = constant([1 / columns, 1 / rows], point).expand_as(point)
        last = constant([columns - 1, rows - 1], point)
        origin = (point / cell).floor().clamp(min=0).minimum(last) * cell
        sides = torch.cat((point - corners[..., :2], corners[..., 2:] - point), dim=-1).clamp(min=0)
        return SalientReference(point=point, sides=sides, origin=origin, cell=cell, previous=point)

    def start(self, points: Tensor, sides: Tensor, corners: Tensor, cell: tuple[float, float]) -> SalientReference:
        spacing = constant(cell, points).expand_as(points)
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

    def decode(self, offsets: dict[str, Tensor], reference: Reference) -> Decoded:
        reference = _salient(reference)
        cell = reference.cell if self.head_cell is None else self.head_cell
        start = reference.previous if self.head_start == "previous" else reference.point
        point = self._moved_point(offsets, start, reference, cell)
        low, high = self._moved_sides(offsets, reference).chunk(2, dim=-1)
        return Decoded(torch.cat((point + (high - low) / 2, low + high), dim=-1), point)

    def move(self, offsets: dict[str, Tensor], reference: Reference) -> SalientReference:
        reference = _salient(reference)
        return SalientReference(
            point=self._moved_point(offsets, reference.point, reference, reference.cell),
            sides=self._moved_sides(offsets, reference),
            origin=reference.origin,
            cell=reference.cell,
            previous=reference.point,
        )


def _salient(reference: Reference) -> SalientReference:
    """The reference, or a TypeError that says who makes such references."""
    if not isinstance(reference, SalientReference):
        raise TypeError(
            f"a salient point geometry reads its own references, not a {type(reference).__name__}; make them with its "
            "`start` or `encode`"
        )
    return reference


def _room_beside(boxes: Tensor, objects: Tensor) -> Tensor:
    """The largest strip of each box, else of the image, left of, above, right of or below an object; else the box.

    All as corners [..., 4] within the image. A strip thinner than 1e-4 is none: its middle could round to the edge.
    """
    image = torch.cat((torch.zeros_like(objects[..., :2]), torch.ones_like(objects[..., :2])), dim=-1)
    strips = torch.cat((_strips(boxes, objects), _strips(image, objects)), dim=-2)  # [..., 8, 4]
    size = strips[..., 2:] - strips[..., :2]
    score = torch.where((size > 1e-4).all(-1), size.prod(-1), -1)
    own, others = score.chunk(2, dim=-1)
    score = torch.cat((own + 2 * (own > 0), others), dim=-1)  # the box's own strips come first
    best, index = score.max(dim=-1, keepdim=True)
    largest = strips.gather(-2, index[..., None].expand(*index.shape, 4)).squeeze(-2)
    return torch.where(best > 0, largest, boxes)


def _strips(boxes: Tensor, objects: Tensor) -> Tensor:
    """The parts [..., 4, 4] of boxes left of, above, right of and below objects; corners, out of order if empty."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    left, top, right, bottom = objects.unbind(-1)
    strips = (
        (x0, y0, x1.minimum(left), y1),
        (x0, y0, x1, y1.minimum(top)),
        (x0.maximum(right), y0, x1, y1),
        (x0, y0.maximum(bottom), x1, y1),
    )
    return torch.stack([torch.stack(strip, dim=-1) for strip in strips], dim=-2)
