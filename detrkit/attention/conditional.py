"""Self-attention with separate projections of content and of each position embedding."""

from __future__ import annotations

from torch import Tensor, nn

from detrkit.attention.base import SelfAttention
from detrkit.attention.multihead import self_attend, split_heads
from detrkit.attention.self_terms import SelfTerms, SelfTermSum
from detrkit.recipe import register
from detrkit.structures import QueryLayout, QueryPosition


@register("self_attention", "conditional")
class ConditionalSelfAttention(SelfAttention):
    """q = A e + sum of P_n Q_n, k alike with own matrices, v = V e (Conditional DETR; SAP-DETR, section 3.3).

    Args:
        width: D.
        heads: H.
        positions: names of the query position embeddings Q_n.
        dropout: on attention weights.
        terms: what is added to these logits, such as Relation DETR's.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        positions: tuple[str, ...],
        dropout: float,
        terms: SelfTerms = [],  # noqa: B006 (never changed)
    ):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.query_position = nn.ModuleDict({name: nn.Linear(width, width) for name in positions})
        self.key_position = nn.ModuleDict({name: nn.Linear(width, width) for name in positions})
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)
        self.terms = SelfTermSum(terms, width=width, heads=heads)
        self.relations = self.terms.relations

    def forward(self, content: Tensor, position: QueryPosition, layout: QueryLayout | None = None) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]; `layout` says who sees whom, None: all do."""
        bias = self.terms(content, position)
        query, key = self.query(content), self.key(content)
        for name, embedding in position.embeddings.items():
            query = query + self.query_position[name](embedding)
            key = key + self.key_position[name](embedding)
        query, key, value = (split_heads(x, self.heads) for x in (query, key, self.value(content)))
        dropout = self.dropout if self.training else 0.0
        return self.out(self_attend(query, key, value, layout, dropout=dropout, bias=bias))
