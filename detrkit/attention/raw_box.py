"""The box of a reference as a query's place, by its four numbers alone (RT-DETR)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from detrkit.attention.query_position import QueryPositionPart
from detrkit.layers import MLP, Smooth, xavier_matrices
from detrkit.recipe import register
from detrkit.structures import Memory, Queries, QueryPosition


@register("query_position", "raw_box")
class RawBoxPosition(QueryPositionPart):
    """The reference box: embedding an MLP of (cx, cy, w, h), without sines; it gives no code (RT-DETR, official code).

    Needs references with sides: geometry "box" or "salient_point".

    Args:
        width: D.
        form: of the MLP: "wide", 4 to 2 D to D (RT-DETR), or "deep", 4 to D to D to D (DEIM).
        activation: of the MLP; "silu" in DEIM.
    """

    embeddings = ("raw_box",)

    def __init__(self, *, width: int, form: Literal["wide", "deep"] = "wide", activation: Smooth = "relu"):
        super().__init__()
        hidden, depth = (2 * width, 2) if form == "wide" else (width, 3)
        self.embed = MLP(4, hidden, width, depth, activation)
        xavier_matrices(self)

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        return QueryPosition({"raw_box": self.embed(queries.reference.boxes())}, {})
