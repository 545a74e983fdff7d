"""Plain attention: among the decoder's queries, and from them to the memory."""

from __future__ import annotations

from torch import Tensor, nn

from detrkit.attention.multihead import MultiHeadAttention, merge_heads
from detrkit.attention.terms import Terms, TermSum, fused_attention
from detrkit.recipe import register
from detrkit.structures import Memory, QueryLayout, QueryPosition, Reference


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


@register("cross_attention", "plain")
class PlainCrossAttention(TermSum):
    """q = content + all position embeddings, k = tokens + codes, v = tokens, packed projections (DETR, section A.3).

    Args:
        width: D.
        heads: H.
        dropout: on attention weights.
        first: whether this is the decoder's first layer.
        terms: what is added to these logits, such as SMCA's Gaussian.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        dropout: float,
        first: bool,
        terms: Terms = [],  # noqa: B006 (never changed)
    ):
        super().__init__(terms, width=width, heads=heads, first=first, head_widths=1)
        self.attention = MultiHeadAttention(width=width, heads=heads, dropout=dropout)

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]."""
        placed = sum(position.embeddings.values(), content)
        own, key, value = self.attention.project(placed, memory.tokens + memory.position, memory.tokens)
        queries, keys = self.query_features(content, position, reference, memory), self.key_features(memory)
        mixed = fused_attention(
            [own * self.scale, *(queries[name] for name in keys)],
            [key, *keys.values()],
            value,
            memory.mask,
            dropout=self.attention.dropout if self.training else 0.0,
        )
        return self.attention.out_proj(merge_heads(mixed))
