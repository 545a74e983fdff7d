"""Learned queries whose embedding says where they look (Deformable DETR)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from detrkit.geometry.base import Geometry
from detrkit.layers import Count, at_least_float32
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import register
from detrkit.structures import Memory, Queries, QueryLimit


@register("queries", "learned_points")
class LearnedPointQueries(QueryGenerator):
    """Learned content and place embedding; a linear layer of the embedding gives the point (Deformable DETR, A.4).

    Args:
        width: D.
        geometry: turns the points into references.
        groups: how many groups of them there are, each with its own.
        count: N.
        initial_size: side of the box around each point, as a share of the image, for geometries whose references have
            sides.
    """

    place_layers = ("point",)
    makes_groups = True

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        groups: int = 1,
        count: Count = 300,
        initial_size: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    ):
        super().__init__()
        self.geometry, self.count, self.initial_size = geometry, count, initial_size
        self.limit = QueryLimit(count, "queries.count")
        self.table = nn.Parameter(torch.randn(groups * count, 2 * width))  # embedding, content
        self.point = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.point.weight)
        nn.init.zeros_(self.point.bias)

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        """The queries of the first `groups` groups."""
        rows = self.table[: groups * self.count]
        embedding, content = rows.expand(memory.tokens.shape[0], -1, -1).chunk(2, dim=-1)
        point = at_least_float32(self.point(embedding)).sigmoid()
        boxes = torch.cat((point, torch.full_like(point, self.initial_size)), dim=-1)
        return Queries(content, self.geometry.encode(boxes), embedding)
