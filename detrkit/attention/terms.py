"""Cross-attention as a sum of terms.

Each term gives query features and names the key features that they meet; its contribution to the logits is their
dot product. Terms that meet the same keys add their query features, since q1.k + q2.k = (q1 + q2).k, and the rest is
concatenated, so one call of fused attention serves any sum and no [B, H, N, L] tensor is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrkit.attention.multihead import key_mask, merge_heads, split_heads
from detrkit.errors import UserError
from detrkit.recipe import Factory, Slot, define_slot, register
from detrkit.structures import Memory, QueryPosition, Reference

define_slot("cross_attention", offers=("width", "heads", "levels", "positions", "dropout", "first"))
define_slot("term", offers=("width", "heads", "first"))

Terms = Annotated[list[Factory], Slot("term")]


class Term(nn.Module):
    """One summand of the attention logits."""

    key: str
    """name of the key features that it meets; terms of one name share them"""
    head_widths: int
    """how many head widths it counts for in the scale 1 / sqrt(head_widths * D / H) of all terms that are dot products
    of learned projections; 0 for a term whose logits are meant as they are (a Gaussian)"""

    def make_key(self, *, width: int, heads: int) -> nn.Module:
        """A module from Memory to key features [B, H, L, F]; the first term of a key makes it."""
        raise NotImplementedError

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Query features [B, H, N, F]."""
        raise NotImplementedError


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
    """Projected content against projected memory."""

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
    """The reference point against the cell: conditional attention's spatial half (Conditional DETR, section 3.2)."""

    code = "point"

    def __init__(self, *, width: int, heads: int):
        super().__init__(inputs=width, width=width, heads=heads)


@dataclass(frozen=True)
class ProductForms:
    """Multiply-adds by which a sum of terms differs from the plain form, a key of its own for each term.

    saved: what adding the queries of terms that share a key saves; zeros: spent on channels that are zero, which
    fused kernels want.
    """

    saved: int
    zeros: int


class Summand(NamedTuple):
    """One summand of the logits: the dot product of its query features with the key features it names."""

    name: str
    """the term's; "places" for the position embeddings that the first layer blends into its content"""
    key: str
    query: Tensor
    """[B, H, N, F], scaled"""


class TermSum(nn.Module):
    """Terms, and the key features that they meet.

    Args:
        terms: the summands.
        width: D.
        heads: H.
        first: whether this is the decoder's first layer.
        head_widths: how wide an owner's own queries and keys are, which count for as much in the scale.
    """

    def __init__(self, terms: list[Factory], *, width: int, heads: int, first: bool, head_widths: int = 0):
        super().__init__()
        self.heads, self.own_width = heads, head_widths * width // heads
        self.terms, self.keys = nn.ModuleDict(), nn.ModuleDict()
        for factory in terms:
            if factory.name in self.terms:
                raise UserError(f'the term "{factory.name}" stands twice in decoder.cross_attention.terms')
            term = factory(width=width, heads=heads, first=first)
            self.terms[factory.name] = term
            if term.key not in self.keys:
                self.keys[term.key] = term.make_key(width=width, heads=heads)
        self.scale = ((head_widths + sum(t.head_widths for t in self.terms.values())) * width // heads) ** -0.5

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        """What the logits are the sum of, term by term."""
        for name, term in self.terms.items():
            features = term(content, position, reference, memory)
            if term.head_widths:  # the scale goes here, so that absolute terms stay exact under bfloat16
                features = features * self.scale
            yield Summand(name, term.key, features)

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        """The key features [B or 1, H or 1, L, F] by their name."""
        return {name: key(memory) for name, key in self.keys.items()}

    def query_features(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> dict[str, Tensor]:
        """The query features [B, H, N, F] by the name of the key that they meet, summed over its terms."""
        queries: dict[str, Tensor] = {}
        for summand in self.summands(content, position, reference, memory):
            key, features = summand.key, summand.query
            queries[key] = queries[key] + features if key in queries else features
        return queries

    def product_forms(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> ProductForms:
        """How the work of `forward` on the same arguments differs from the plain form's."""
        widths = {name: key(memory).shape[-1] for name, key in self.keys.items()}
        batch, cells, width = memory.tokens.shape
        pairs = batch * self.heads * content.shape[1] * cells
        copies = sum(widths[term.key] for term in self.terms.values()) - sum(widths.values())
        zeros = zero_channels(self.own_width + sum(widths.values()), width // self.heads)
        return ProductForms(pairs * copies, pairs * zeros)


@register("cross_attention", "terms")
class TermAttention(TermSum):
    """Queries to memory, with logits that are a sum of terms.

    In the first layer the content logits also see the places: each position embedding is projected and added to the
    content queries, and the position keys to the content keys (Conditional DETR and its descendants).

    Args:
        width: D.
        heads: H.
        positions: names of the query position embeddings.
        dropout: on attention weights.
        first: whether this is the decoder's first layer.
        terms: the summands.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        positions: tuple[str, ...],
        dropout: float,
        first: bool,
        terms: Terms,
    ):
        super().__init__(terms, width=width, heads=heads, first=first)
        self.dropout = dropout
        blends = first and {"content", "position"} <= set(self.keys)
        self.first = nn.ModuleDict({name: nn.Linear(width, width) for name in positions} if blends else {})
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        """What the logits are the sum of: each term, then in the first layer the places blended into the content."""
        yield from super().summands(content, position, reference, memory)
        if self.first:
            placed = sum(layer(position.embeddings[name]) for name, layer in self.first.items())
            yield Summand("places", "content", split_heads(placed * self.scale, self.heads))

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        """The key features [B or 1, H or 1, L, F] by their name."""
        keys = super().key_features(memory)
        if self.first:
            keys["content"] = keys["content"] + keys["position"]
        return keys

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]."""
        queries = self.query_features(content, position, reference, memory)
        keys = self.key_features(memory)
        value = split_heads(self.value(memory.tokens), self.heads)
        mixed = fused_attention(
            [queries[name] for name in keys],
            list(keys.values()),
            value,
            memory.mask,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(merge_heads(mixed))


def zero_channels(keys: int, values: int) -> int:
    """Channels of zeros that `fused_attention` adds to keys and to values of so many channels."""
    full = _padded_width(keys)
    return full - keys + _value_width(values, full) - values


def _padded_width(width: int) -> int:
    return -(-width // 8) * 8


def _value_width(width: int, full: int) -> int:
    """Channels of the values in the fused call, where queries and keys have `full`."""
    return full if full <= 4 * width else width


def fused_attention(
    queries: list[Tensor], keys: list[Tensor], value: Tensor, mask: Tensor | None, *, dropout: float
) -> Tensor:
    """softmax(sum of q_i k_i) v in one fused call.

    Args:
        queries, keys: one [B, H, N, F_i] and [B, H, L, F_i] for each sum of terms.
        value: [B, H, L, F].
        mask: [B, L], True where padded, or None.

    Fused kernels want one width for queries, keys and values, a multiple of eight: the missing channels are zeros,
    which change nothing, and those of the result are dropped. Values of less than a quarter of the width stay as they
    are: zeros would cost more than they save.
    """
    width = value.shape[-1]
    full = _padded_width(sum(k.shape[-1] for k in keys))
    missing = full - sum(k.shape[-1] for k in keys)
    dtype = value.dtype
    query = F.pad(torch.cat([q.to(dtype) for q in queries], dim=-1), (0, missing))
    key = F.pad(
        torch.cat([k.to(dtype).expand(len(value), value.shape[1], -1, -1) for k in keys], dim=-1),
        (0, missing),
    )
    value = F.pad(value, (0, _value_width(width, full) - width))
    mixed = F.scaled_dot_product_attention(query, key, value, key_mask(mask), dropout, scale=1.0)
    return mixed[..., :width]
