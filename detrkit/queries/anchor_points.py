"""Anchor points as queries, each with several patterns (Anchor DETR)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from detrkit.geometry.base import Geometry
from detrkit.layers import Count
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import register
from detrkit.structures import Memory, Queries, QueryLimit


@register("queries", "anchor_points")
class AnchorPointQueries(QueryGenerator):
    """Learned points and learned patterns of content, every pattern at every point (Anchor DETR, section 3.3).

    N = points * patterns, pattern by pattern. Points are used as they are: training may carry them out of the image.

    Args:
        width: D.
        geometry: turns the points into references.
        points: anchor points.
        patterns: what is looked for at each of them.
        initial_size: side of the box around each point, as a share of the image, for geometries whose references have
            sides.
    """

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        points: Count = 100,
        patterns: Count = 3,
        initial_size: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    ):
        super().__init__()
        self.geometry, self.initial_size = geometry, initial_size
        self.points = nn.Parameter(torch.rand(points, 2))
        self.patterns = nn.Parameter(torch.randn(patterns, width))
        self.limit = QueryLimit(points * patterns, "queries.points")

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        batch = memory.tokens.shape[0]
        points = self.points.repeat(len(self.patterns), 1)
        content = self.patterns.repeat_interleave(len(self.points), dim=0)
        boxes = torch.cat((points, torch.full_like(points, self.initial_size)), dim=-1)
        return Queries(content.expand(batch, -1, -1), self.geometry.encode(boxes.expand(batch, -1, -1)))
