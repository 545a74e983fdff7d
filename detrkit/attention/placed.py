"""Cross-attention for a decoder of another make: content, boxes and memory in, update out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from detrkit.attention.base import CrossAttention
from detrkit.attention.query_position import QueryPositions
from detrkit.geometry.base import Geometry
from detrkit.recipe import Given, as_factory
from detrkit.structures import Memory, Queries, QueryPosition


class PlacedAttention(nn.Module):
    """A cross-attention with the query positions that it reads, and the geometry that makes references of boxes.

    In detrkit's own decoder all layers share positions and geometry; here each attention stands by itself.

    Args:
        width: D.
        heads: H.
        cross_attention: in any form (see `detrkit.recipe.as_factory`).
        positions: the query positions that it reads, likewise.
        geometry: makes references of boxes.
        levels: of the memory.
        dropout: on attention weights.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        cross_attention: Given,
        positions: Sequence[Given] = (),
        geometry: Given = "box",
        levels: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.positions = QueryPositions(positions, width=width, heads=heads)
        self.geometry: Geometry = as_factory("geometry", geometry)()
        offered = {"width": width, "heads": heads, "levels": levels, "dropout": dropout}
        names = self.positions.embedding_names
        look = as_factory("cross_attention", cross_attention)
        self.attention: CrossAttention = look(**offered, positions=names, first=False)

    def forward(
        self, content: Tensor, boxes: Tensor, memory: Memory, codes: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Content [B, N, D] and where its queries look, boxes [B, N, 4] (cx, cy, w, h), to the update [B, N, D].

        Args:
            codes: codes [B, N, F] of the queries' places that the decoder around has made, by the names that terms
                call them by ("point": D numbers, "side": 2 D).
        """
        reference = self.geometry.encode(boxes)
        position = self.positions(Queries(content, reference), None, memory)
        position = QueryPosition(position.embeddings, {**position.codes, **(codes or {})})
        return self.attention(content, position, reference, memory)
