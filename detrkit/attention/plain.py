"""Plain attention: among the decoder's queries, and from them to the memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from detrkit.attention.base import SelfAttention
from detrkit.attention.multihead import MultiHeadAttention
from detrkit.attention.self_terms import SelfTerms, SelfTermSum
from detrkit.attention.summed import Summand
from detrkit.attention.term_sum import TermSum
from detrkit.attention.terms import Terms
from detrkit.recipe import register
from detrkit.structures import Memory, QueryLayout, QueryPosition, Reference


@register("self_attention", "plain")
class PlainSelfAttention(SelfAttention):
    """q = k = content + all position embeddings, v = content, packed projections (DETR, section A.3).

    Args:
        width: D.
        heads: H.
        dropout: on attention weights.
        terms: what is added to these logits, such as Relation DETR's.
    """

    def __init__(self, *, width: int, heads: int, dropout: float, terms: SelfTerms = []):  # noqa: B006 (never changed)
        super().__init__()
        self.attention = MultiHeadAttention(width=width, heads=heads, dropout=dropout)
        self.terms = SelfTermSum(terms, width=width, heads=heads)
        self.relations = self.terms.relations

    def forward(self, content: Tensor, position: QueryPosition, layout: QueryLayout | None = None) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]; `layout` says who sees whom, None: all do."""
        placed = sum(position.embeddings.values(), content)
        return self.attention(placed, placed, content, layout=layout, bias=self.terms(content, position))


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
        super().__init__(terms, width=width, heads=heads, first=first, dropout=dropout, head_widths=1)
        self.attention = MultiHeadAttention(width=width, heads=heads)

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        """ "plain", the packed projections' own logits, then the terms."""
        placed = sum(position.embeddings.values(), content)
        yield Summand("plain", "plain", self.attention.queries(placed) * self.scale)
        yield from super().summands(content, position, reference, memory)

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        return {"plain": self.attention.keys(memory.tokens + memory.position), **super().key_features(memory)}

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]."""
        value = self.attention.values(memory.tokens)
        return self.attention.out_proj(self.attend(value, content, position, reference, memory))
