"""Cross-attention as a sum of terms that a recipe lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from detrkit.attention.multihead import split_heads
from detrkit.attention.summed import Summand, SummedAttention
from detrkit.attention.terms import Term, Terms
from detrkit.errors import UserError
from detrkit.layers import can_be_named, require_module_names
from detrkit.recipe import Given, as_factory, register
from detrkit.structures import Memory, QueryPosition, Reference


class TermSum(SummedAttention):
    """Terms, and the key features that they meet.

    Args:
        terms: the summands.
        width: D.
        heads: H.
        first: whether this is the decoder's first layer.
        dropout: on attention weights.
        head_widths: of an owner's own queries and keys, which count in the scale.
    """

    def __init__(
        self, terms: Sequence[Given], *, width: int, heads: int, first: bool, dropout: float, head_widths: int = 0
    ):
        super().__init__(heads=heads, dropout=dropout)
        if not terms and not head_widths:
            raise UserError("decoder.cross_attention.terms is empty, so nothing says where to look; name a term")
        self.terms, self.keys = nn.ModuleDict(), nn.ModuleDict()
        for factory in (as_factory("term", given) for given in terms):
            if factory.name in self.terms:
                raise UserError(f'the term "{factory.name}" stands twice in decoder.cross_attention.terms')
            term = factory(width=width, heads=heads, first=first)
            _check(factory.name, term)
            self.terms[factory.name] = term
            if term.key not in self.keys:
                self.keys[term.key] = term.make_key(width=width, heads=heads)
        widths = head_widths + sum(term.head_widths for term in self.named_terms.values())
        self.scale = (widths * width // heads) ** -0.5 if widths else 1.0  # of a Gaussian alone nothing is scaled

    @property
    def named_terms(self) -> dict[str, Term]:
        """The terms by name, in the recipe's order."""
        return {name: cast(Term, term) for name, term in self.terms.items()}

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        for name, term in self.named_terms.items():
            features = term(content, position, reference, memory)
            if not isinstance(features, Tensor):
                raise UserError(f'the term "{name}" gives a {type(features).__name__}, should be [B, H, N, F]')
            if term.head_widths:  # the scale goes here, so that absolute terms stay exact under bfloat16
                features = features * self.scale
            yield Summand(name, term.key, features)

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        return {name: key(memory) for name, key in self.keys.items()}

    def shared_channels(self, widths: dict[str, int]) -> int:
        """Key channels that terms share with an earlier one, and the plain form gives each for itself."""
        return sum(widths[term.key] for term in self.named_terms.values()) - sum(widths[key] for key in self.keys)


def _check(name: str, term: Term) -> None:
    """Raise UserError if a term, a person's own perhaps, says of itself what cannot be."""
    require_module_names([name], "a term")
    if not can_be_named(term.key):
        raise UserError(f'the term "{name}" has the key "{term.key}"; take another name for it')
    if not isinstance(term.head_widths, int) or term.head_widths < 0:
        raise UserError(f'the term "{name}" has head_widths = {term.head_widths!r}, should be an integer, at least 0')


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
        super().__init__(terms, width=width, heads=heads, first=first, dropout=dropout)
        blends = first and {"content", "position"} <= set(self.keys)
        self.first = nn.ModuleDict({name: nn.Linear(width, width) for name in positions} if blends else {})
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        """Each term, then "places": the position embeddings that the first layer blends into its content."""
        yield from super().summands(content, position, reference, memory)
        if self.first:
            placed = sum(layer(position.embeddings[name]) for name, layer in self.first.items())
            yield Summand("places", "content", split_heads(placed * self.scale, self.heads))

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        keys = super().key_features(memory)
        if self.first:
            keys["content"] = keys["content"] + keys["position"]
        return keys

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]."""
        value = split_heads(self.value(memory.tokens), self.heads)
        return self.out(self.attend(value, content, position, reference, memory))
