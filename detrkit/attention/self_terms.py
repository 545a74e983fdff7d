"""The terms of self-attention: what is added to the logits of queries looking at one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

from torch import Tensor, nn

from detrkit.errors import UserError, lacking
from detrkit.layers import Part, require_module_names, total
from detrkit.recipe import Given, Slot, as_factory, define_slot
from detrkit.structures import QueryPosition, Relation

SelfTerms = Annotated[list[Given], Slot("self_term")]


class SelfTerm(Part):
    """One summand of the logits among the decoder's queries, beside their dot product."""

    relations: tuple[str, ...] = ()
    """names of what it asks for of pairs of queries, which a part of `decoder.positions` gives"""

    def forward(self, content: Tensor, position: QueryPosition) -> Relation | None:
        """Content [B, N, D] to the summand; None in a layer that has none."""
        raise lacking(self, SelfTerm.forward)


define_slot("self_term", offers=("width", "heads"), base=SelfTerm)


class SelfTermSum(nn.ModuleDict):
    """Several terms as one, by name.

    Args:
        terms: in any form (see `detrkit.recipe.as_factory`).
        width: D.
        heads: H.

    Raises:
        UserError: one stands twice, or has a name that a `ModuleDict` has for something else.
    """

    def __init__(self, terms: Sequence[Given], *, width: int, heads: int):
        factories = [as_factory("self_term", given) for given in terms]
        names = [factory.name for factory in factories]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f'the term "{repeated[0]}" stands twice in decoder.self_attention.terms')
        require_module_names(names, "a term")
        super().__init__({factory.name: factory(width=width, heads=heads) for factory in factories})

    @property
    def relations(self) -> tuple[str, ...]:
        """What all of them ask for."""
        return tuple(name for term in self.values() for name in cast(SelfTerm, term).relations)

    def forward(self, content: Tensor, position: QueryPosition) -> Relation | None:
        """The sum of the terms."""
        found = [summand for term in self.values() if (summand := term(content, position)) is not None]
        if not found:
            return None

        def added(places: slice) -> Tensor:
            return total(summand(places) for summand in found)

        return added
