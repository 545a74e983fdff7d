"""Plain self-attention among the decoder's queries."""

from __future__ import annotations

from torch import Tensor, nn

from detrkit.attention.multihead import MultiHeadAttention
from detrkit.recipe import register
from detrkit.structures import QueryLayout, QueryPosition


@register("self_attention", "plain")
class PlainSelfAttention(nn.Module):
    """q = k = content + all position embeddings, v = content, packed projections (DETR, section A.3).

    Args:
        width: D.
        heads: H.
        dropout: on attention weights.
    """

    def __init__(self, *, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = MultiHeadAttention(width=width, heads=heads, dropout=dropout)

    def forward(self, content: Tensor, position: QueryPosition, layout: QueryLayout | None = None) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]; `layout` says who sees whom, None: all do."""
        placed = sum(position.embeddings.values(), content)
        return self.attention(placed, placed, content, layout=layout)
