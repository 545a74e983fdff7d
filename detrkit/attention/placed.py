"""Cross-attention for a decoder of another make: content, places and memory in, update out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from detrkit.attention.base import CrossAttention
from detrkit.attention.query_position import QueryPositions
from detrkit.errors import UserError
from detrkit.geometry.base import Geometry
from detrkit.recipe import Given, as_factory
from detrkit.structures import Memory, Queries, QueryPosition, Reference


class PlacedAttention(nn.Module):
    """A cross-attention with the query positions that it reads, and the geometry that makes references of boxes.

    In detrkit's own decoder all layers share positions and geometry; here each attention stands by itself.

    Args:
        width: D, a multiple of H.
        heads: H.
        cross_attention: in any form (see `detrkit.recipe.as_factory`).
        positions: the query positions that it reads, likewise. "terms" reads their codes, their embeddings only where
            it is `first`: elsewhere those have no gradient, so take `part("query_position", NAME, embedding="none")` of
            "point" and "side" ("box" always has one).
        geometry: makes references of boxes.
        levels: of the memory.
        dropout: on attention weights.
        first: whether this is the decoder's first layer, where the logits of content see the places, too ("terms").

    Raises:
        UserError: parts that do not go together.
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
        first: bool = False,
    ):
        super().__init__()
        if min(width, heads) < 1:
            raise UserError(f"width = {width} and heads = {heads} should be 1 at least")
        if width % heads:
            raise UserError(f"width = {width} is no multiple of heads = {heads}")
        self.positions = QueryPositions(positions, width=width, heads=heads)
        self.geometry: Geometry = as_factory("geometry", geometry)()
        offered = {"width": width, "heads": heads, "levels": levels, "dropout": dropout}
        names = self.positions.embedding_names
        look = as_factory("cross_attention", cross_attention)
        self.attention: CrossAttention = look(**offered, positions=names, first=first)

    def forward(
        self,
        content: Tensor,
        places: Tensor | Reference,
        memory: Memory,
        codes: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Content [B, N, D] and where its queries look to the update [B, N, D].

        Args:
            places: boxes [B, N, 4] (cx, cy, w, h) in shares of the image, or references, such as salient points that
                lie anywhere in their boxes.
            codes: codes [B, N, F] of the queries' places that the decoder around has made, by the names that terms
                call them by ("point": D numbers, "side": 2 D).

        Raises:
            UserError: boxes of another shape, or no position gives a code that a term reads.
        """
        if not isinstance(places, Reference) and places.shape != (*content.shape[:2], 4):
            raise UserError(
                f"{list(places.shape)} are no boxes of content {list(content.shape)}; they are [B, N, 4] of [B, N, D]"
            )
        reference = places if isinstance(places, Reference) else self.geometry.encode(places)
        position = self.positions(Queries(content, reference), None, memory)
        position = QueryPosition(position.embeddings, {**position.codes, **(codes or {})})
        return self.attention(content, position, reference, memory)
