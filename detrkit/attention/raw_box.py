"""The box of a reference as a query's place, by its four numbers alone (RT-DETR)."""

from __future__ import annotations

from torch import Tensor

from detrkit.attention.query_position import QueryPositionPart
from detrkit.layers import MLP, xavier_matrices
from detrkit.recipe import register
from detrkit.structures import Memory, Queries, QueryPosition


@register("query_position", "raw_box")
class RawBoxPosition(QueryPositionPart):
    """The reference box: embedding an MLP of (cx, cy, w, h), without sines; it gives no code (RT-DETR, official code).

    Needs references with sides: geometry "box" or "salient_point".

    Args:
        width: D.
    """

    embeddings = ("raw_box",)

    def __init__(self, *, width: int):
        super().__init__()
        self.embed = MLP(4, 2 * width, width, 2)
        xavier_matrices(self)

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        return QueryPosition({"raw_box": self.embed(queries.reference.boxes())}, {})
