"""What the two attentions of a decoder layer are."""

from __future__ import annotations

from torch import Tensor

from detrkit.errors import lacking
from detrkit.layers import Part
from detrkit.recipe import define_slot
from detrkit.structures import Memory, QueryLayout, QueryPosition, Reference


class SelfAttention(Part):
    """Queries look at one another."""

    relations: tuple[str, ...] = ()
    """names of what its terms ask for of pairs of queries (`QueryPosition.relations`)"""

    def forward(self, content: Tensor, position: QueryPosition, layout: QueryLayout | None = None) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]; `layout` says who sees whom, None: all do."""
        raise lacking(self, SelfAttention.forward)


class CrossAttention(Part):
    """Queries look at the memory."""

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]."""
        raise lacking(self, CrossAttention.forward)


define_slot("self_attention", offers=("width", "heads", "positions", "dropout"), base=SelfAttention)
define_slot(
    "cross_attention", offers=("width", "heads", "levels", "positions", "dropout", "first"), base=CrossAttention
)
