"""Learned place embeddings as queries (DETR, Conditional DETR, SMCA)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from detrkit.decoder import QueryDecoder
from detrkit.errors import UserError
from detrkit.geometry.base import Geometry
from detrkit.layers import MLP, Count, Layers, at_least_float32, xavier_matrices
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import register
from detrkit.structures import Memory, Queries, QueryLimit


@register("queries", "learned")
class LearnedQueries(QueryGenerator):
    """Content of zero and a learned embedding (DETR, section 3.2), from which an MLP may read the reference point.

    Args:
        width: D.
        geometry: turns points into references.
        groups: how many groups of embeddings there are, each with its own.
        count: N.
        point_depth: linear layers of the MLP from embedding to point (Conditional DETR: 2, SMCA: 3); 0 for queries
            that all start in the middle of the image (DETR, whose geometry is "none").
        point_norm: norm the embedding before that MLP, for the first layer's Gaussian too (SMCA; see its term).
        initial_size: side of the box around each point, as a share of the image, for geometries whose references have
            sides.
    """

    makes_groups = True

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        groups: int = 1,
        count: Count = 300,
        point_depth: Layers = 0,
        point_norm: bool = False,
        initial_size: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    ):
        super().__init__()
        if point_norm and not point_depth:
            raise UserError(
                "queries.point_norm = true norms what points are read off, and with queries.point_depth = 0 no point "
                "is read; set point_depth (SMCA: 3), or point_norm = false"
            )
        self.geometry, self.count, self.initial_size = geometry, count, initial_size
        self.limit = QueryLimit(count, "queries.count")
        self.embedding = nn.Parameter(torch.randn(groups * count, width))
        self.point_norm = nn.LayerNorm(width) if point_norm else nn.Identity()
        self.point = MLP(width, width, 2, point_depth) if point_depth else None
        if self.point is not None:
            xavier_matrices(self.point)

    def check(self, decoder: QueryDecoder) -> None:
        """Raise UserError if neither references nor the decoder tell one query from another."""
        tells = self.point is not None and self.geometry.holds_boxes
        if not tells and decoder.embedding_readers is not None and not decoder.embedding_readers:
            raise UserError(
                'queries "learned" differ by their embeddings, and no part of decoder.positions says that it reads '
                'them (`reads_embeddings`): all queries would be the same one. Name "learned" there'
                + (", or set queries.point_depth" if self.geometry.holds_boxes else "")
            )

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        """The queries of the first `groups` groups."""
        embedding = self.embedding[: groups * self.count].expand(memory.tokens.shape[0], -1, -1)
        normed = self.point_norm(embedding)
        if self.point is None:
            point = torch.full_like(embedding[..., :2], 0.5)
        else:
            point = at_least_float32(self.point(normed)).sigmoid()
        boxes = torch.cat((point, torch.full_like(point, self.initial_size)), dim=-1)
        read_from = None if isinstance(self.point_norm, nn.Identity) else normed
        return Queries(
            torch.zeros_like(embedding), self.geometry.encode(boxes), embedding=embedding, read_from=read_from
        )
