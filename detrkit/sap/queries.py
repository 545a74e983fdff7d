"""Salient queries: grid points with learned sides, and content taken from the memory (SAP-DETR, section 3.1)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detrkit.boxes import inverse_sigmoid
from detrkit.geometry.base import Geometry
from detrkit.layers import GroupNorm, constant, masked_group_norm, zero_bias
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import register
from detrkit.sap.geometry import Grid
from detrkit.structures import Extent, Memory, Queries, QueryLimit


@register("queries", "salient_grid")
class SalientGridQueries(QueryGenerator):
    """One query for each corner of a grid over the image, row by row (SAP-DETR, section 3.1).

    Args:
        width: D.
        geometry: turns points and sides into references.
        groups: how many groups share the grid and own their sides; their content is the same, so that sides alone
            tell groups apart (there is no official code).
        grid: (rows, columns). The official code has 17 x 18 for 306 queries and squares for any other number.
        content: where content starts: sampled from the "memory" at the query's point after three convolutions
            (published; of several levels, from the coarsest), or at "zero".
        initial_side: where the learned sides start, as a share of the image.
        side_spread: deviation of their logits around that; the published start is 0.5 and 1.
        start: where in its cell a point begins: the "corner" (published), from which it moves right and down only, or
            the "center".
        border: what content sees outside the map: "zero" (published: the first row and column get about half the
            content, query 0 a quarter), or the "edge", the nearest cell.
        extent: what points are relative to when content is sampled: the "padded" map (published: the content of an
            image depends on its batch), or the "image" itself, with norms that leave padding out as well.

    Corners are stored as clipped logits, as published, so the first row and column sit at 0.001 and not at 0.
    """

    makes_groups = True

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        grid: Grid = (17, 18),
        content: Literal["memory", "zero"] = "memory",
        initial_side: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        side_spread: Annotated[float, Field(ge=0)] = 1.0,
        start: Literal["corner", "center"] = "corner",
        border: Literal["zero", "edge"] = "zero",
        extent: Extent = "padded",
        groups: int = 1,
    ):
        super().__init__()
        self.in_cell = 0.5 if start == "center" else 0.0
        rows, columns = grid
        geometry.on_grid(grid)
        self.limit = QueryLimit(rows * columns, "queries.grid")
        self.geometry, self.cell = geometry, (1 / columns, 1 / rows)
        y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
        points = inverse_sigmoid(torch.stack((x, y), dim=-1).flatten(0, 1), eps=1e-3)
        self.points = nn.Parameter(points, requires_grad=False)
        self.sides = nn.Parameter(
            torch.randn(groups * rows * columns, 4) * side_spread + math.log(initial_side / (1 - initial_side))
        )
        self.content = MemoryContent(width, border=border, extent=extent) if content == "memory" else None
        self.width = width

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        """The queries of the first `groups` groups."""
        batch, count = memory.tokens.shape[0], len(self.points)
        corners = self.points.sigmoid().expand(batch, -1, -1)
        points = corners + self.in_cell * constant(self.cell, corners)
        sides = self.sides[: groups * count].sigmoid().expand(batch, -1, -1)
        if self.content is None:
            content = sides.new_zeros(batch, count, self.width)
        else:
            content = self.content(memory, points)
        content, points, corners = (x.repeat(1, groups, 1) for x in (content, points, corners))
        return Queries(content, self.geometry.start(points, sides, corners, self.cell))


class MemoryContent(nn.Module):
    """Three times convolution, GroupNorm and ReLU over the memory map, sampled at the queries' points."""

    def __init__(self, width: int, *, border: Literal["zero", "edge"], extent: Extent):
        super().__init__()
        self.padding_mode = "zeros" if border == "zero" else "border"
        self.extent = extent
        blocks: list[nn.Module] = []
        for _ in range(3):
            convolution = nn.Conv2d(width, width, kernel_size=3, padding=1)
            nn.init.normal_(convolution.weight, std=0.01)
            zero_bias(convolution)
            blocks += [convolution, GroupNorm(norm_groups(width), width), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, memory: Memory, points: Tensor) -> Tensor:
        """Memory, of which the coarsest level is read, and points [B, N, 2] in [0, 1] to content [B, N, D]."""
        memory = memory.coarsest()
        values = memory.as_map()
        if self.extent == "image" and memory.mask is not None:
            outside = memory.mask.unflatten(1, memory.shape)[:, None]
            values = self._without_padding(values, outside)
            points = points * memory.valid_ratios
            if self.padding_mode == "border":  # not beyond the middle of the image's last cell
                half = constant([0.5 / cells for cells in memory.shape[::-1]], memory.valid_ratios)
                points = points.minimum(memory.valid_ratios - half)
        else:
            values = self.blocks(values)
        places = (2 * points - 1)[:, :, None]
        values = values.to(places.dtype)  # places do not survive bfloat16
        sampled = F.grid_sample(values, places, padding_mode=self.padding_mode, align_corners=False)  # [B, D, N, 1]
        return sampled.squeeze(-1).transpose(1, 2)

    def _without_padding(self, values: Tensor, outside: Tensor) -> Tensor:
        """As if the image had come alone: padding is zero to all convolutions and at the end, and no norm sees it."""
        for block in self.blocks:
            if isinstance(block, nn.Conv2d):
                values = values.masked_fill(outside, 0)
            values = masked_group_norm(values, outside, block) if isinstance(block, nn.GroupNorm) else block(values)
        return values.masked_fill(outside, 0)


def norm_groups(width: int) -> int:
    """The groups that D channels are normed in: 32 of 8 or more (published), else the most such that divide D."""
    return next(groups for groups in range(min(32, width // 8), 0, -1) if width % groups == 0)
