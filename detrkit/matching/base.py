"""What a matcher is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detrkit.errors import lacking
from detrkit.layers import Part
from detrkit.matching.costs import Cost
from detrkit.recipe import define_slot
from detrkit.structures import Matches, Output, Targets


class Matcher(Part):
    """Says which query answers for which object."""

    costs: Mapping[str, Cost] = {}
    """the terms of its cost by name, where it has some: their `needs` are asked of the head"""
    weighs_pairs = False
    """whether pairs count differently (`Matches.weight`); then every loss has to know that"""
    bad_costs = 0
    """how many costs were not finite so far"""

    def match(self, requests: Sequence[tuple[Output, Targets]]) -> Sequence[Matches | Sequence[Matches]]:
        """The matches of several outputs of a batch, each with its truth; the answer's come first.

        Where layers have different numbers of pairs, an output's matches are one of each layer. Groups of queries are
        matched each on its own; pairs of an image then stand group by group.
        """
        raise lacking(self, Matcher.match)


define_slot("matcher", offers=(), base=Matcher)
