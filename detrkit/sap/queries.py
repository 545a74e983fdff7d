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
from detrkit.recipe import register
from detrkit.structures import Memory, Queries

Grid = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


@register("queries", "salient_grid")
class SalientGridQueries(nn.Module):
    """One query for each corner of a grid over the image, row by row.

    Args:
        width: D.
        geometry: turns points and sides into references.
        grid: (rows, columns). The official code has 17 x 18 for 306 queries and squares for any other number.
        content: where content starts: sampled from the "memory" at the query's point after three convolutions
            (published), or at "zero".
        initial_side: where the learned sides start, as a share of the image.
        side_spread: deviation of their logits around that; the published start is 0.5 and 1.

    Points are stored as clipped logits, as published, so the first row and column sit at 0.001 and not at 0. Content
    is sampled in the padded map with zeros outside: the first row and column get about half of it (fact sheet,
    section 4.3).
    """

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        grid: Grid = (17, 18),
        content: Literal["memory", "zero"] = "memory",
        initial_side: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        side_spread: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__()
        rows, columns = grid
        self.geometry, self.cell = geometry, (1 / columns, 1 / rows)
        y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
        points = inverse_sigmoid(torch.stack((x, y), dim=-1).flatten(0, 1), eps=1e-3)
        self.points = nn.Parameter(points, requires_grad=False)
        self.sides = nn.Parameter(
            torch.randn(rows * columns, 4) * side_spread + math.log(initial_side / (1 - initial_side))
        )
        self.content = MemoryContent(width) if content == "memory" else None
        self.width = width

    def forward(self, memory: Memory) -> Queries:
        batch = len(memory.tokens)
        points = self.points.sigmoid().expand(batch, -1, -1)
        sides = self.sides.sigmoid().expand(batch, -1, -1)
        if self.content is None:
            content = sides.new_zeros(batch, len(self.sides), self.width)
        else:
            content = self.content(memory.as_map(), points)
        return Queries(content, self.geometry.start(points, sides, self.cell))


class MemoryContent(nn.Module):
    """Three times convolution, GroupNorm and ReLU over the memory map, sampled at the queries' points."""

    def __init__(self, width: int):
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(3):
            convolution = nn.Conv2d(width, width, kernel_size=3, padding=1)
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)
            blocks += [convolution, nn.GroupNorm(min(32, width // 8), width), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, memory: Tensor, points: Tensor) -> Tensor:
        """Map [B, D, h, w] and points [B, N, 2] in [0, 1] to content [B, N, D]."""
        places = (2 * points - 1)[:, :, None].to(memory.dtype)
        sampled = F.grid_sample(self.blocks(memory), places, align_corners=False)  # [B, D, N, 1]
        return sampled.squeeze(-1).transpose(1, 2)
