"""The terms of cross-attention, whose sum are its logits (see `TermAttention`)."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from detrkit.attention.multihead import split_heads
from detrkit.errors import UserError, lacking
from detrkit.layers import Part
from detrkit.recipe import Given, Slot, define_slot, register
from detrkit.structures import Memory, QueryPosition, Reference

Terms = Annotated[list[Given], Slot("term")]


class Term(Part):
    """One summand of the attention logits."""

    key: str
    """name of the key features that it meets; terms of one name share them"""
    head_widths: int
    """how many head widths it counts for in the scale 1 / sqrt(head_widths * D / H) of all terms that are dot products
    of learned projections; 0 for a term whose logits are meant as they are (a Gaussian)"""

    def make_key(self, *, width: int, heads: int) -> nn.Module:
        """A module from Memory to key features [B or 1, H or 1, L, F]; the first term of a key makes it."""
        raise lacking(self, Term.make_key)

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Query features [B, H, N, F]."""
        raise lacking(self, Term.forward)


define_slot("term", offers=("width", "heads", "first"), base=Term)


class ProjectedKey(nn.Module):
    """A projection of the memory's tokens, or of its cells' codes."""

    def __init__(self, *, width: int, heads: int, source: Literal["tokens", "position"]):
        super().__init__()
        self.heads, self.source = heads, source
        self.projection = nn.Linear(width, width)

    def forward(self, memory: Memory) -> Tensor:
        return split_heads(self.projection(getattr(memory, self.source)), self.heads)


@register("term", "content")
class ContentTerm(Term):
    """Projected content against projected memory (Conditional DETR, section 3.2).

    The logit is (W_q c) . (W_k m) for the query's content c and the cell's token m, head by head.

    Args:
        width: D.
        heads: H.
    """

    key, head_widths = "content", 1

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width, width)

    def make_key(self, *, width: int, heads: int) -> nn.Module:
        return ProjectedKey(width=width, heads=heads, source="tokens")

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        return split_heads(self.projection(content), self.heads)


class CodeTerm(Term):
    """A projected code of the query's place against the projected codes of the cells."""

    key, head_widths = "position", 1
    code: str
    """which code of the query position it projects"""

    def __init__(self, *, inputs: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(inputs, width)

    def make_key(self, *, width: int, heads: int) -> nn.Module:
        return ProjectedKey(width=width, heads=heads, source="position")

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        if self.code not in position.codes:
            raise UserError(
                f"the term '{self.code}' needs a query position that gives the code {self.code!r}; "
                f"decoder.positions gives {sorted(position.codes)}"
            )
        return split_heads(self.projection(position.codes[self.code]), self.heads)


@register("term", "point")
class PointTerm(CodeTerm):
    """The reference point against the cell: conditional attention's spatial half (Conditional DETR, section 3.2).

    The logit is (W_q p) . (W_k s), head by head: p the query's code "point", which the decoder may scale by the content
    (`decoder.content_scale`), s the code of the cell's place.

    Needs the position "point" or "box" in `decoder.positions`, which gives that code.

    Args:
        width: D.
        heads: H.
    """

    code = "point"

    def __init__(self, *, width: int, heads: int):
        super().__init__(inputs=width, width=width, heads=heads)
