"""More queries in training, of which several answer for each object (H-DETR)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from detrkit.blocks.base import Block
from detrkit.errors import UserError
from detrkit.layers import Count
from detrkit.matching.costs import Weight
from detrkit.recipe import register
from detrkit.structures import Extra, Output


@register("block", "hybrid")
class HybridMatching(Block):
    """A second set of queries, matched with each object K times over (Jia et al., "H-DETR", CVPR 2023).

    The query generator owns them. They see one another and never the answer, share everything else, and are matched
    with K copies of each object, so that K queries learn each (section 3.2, "hybrid branch"). Their losses are divided
    by K times the number of objects and weigh `weight`. Outside training there is the answer alone.

    With denoising beside it, the slots see the answer and not the second set. Terms of self-attention that tell
    duplicates apart leave the second set out (Relation DETR, official code).

    Needs queries that come in groups: all but "anchor_points"; with `count`, "mixed_selection" or "distinct_selection".

    Args:
        sets: queries of the second set, as a multiple of the answer's: 1500 of 300 are 5, what holds where neither this
            nor `count` is given.
        count: queries of a second set that the encoder finds by a head of its own, in place of `sets`; its proposals
            are matched with K copies too (Relation DETR, official code).
        copies: K.
        weight: of the second set's losses (lambda; published 1).

    Raises:
        UserError: both `sets` and `count` are given.
    """

    def __init__(
        self,
        *,
        sets: Annotated[int, Field(ge=1, le=1000)] | None = None,
        count: Count | None = None,
        copies: Count = 6,
        weight: Weight = 1.0,
    ):
        super().__init__()
        if sets is not None and count is not None:
            raise UserError('the block "hybrid" takes its second set from the groups (sets) or by a count; give one')
        self.groups, self.second, self.joins_groups = (1 + (sets or 5), 0, True) if count is None else (1, count, False)
        self.copies, self.weight = copies, weight

    def share(self, answer: Output, others: Output) -> tuple[Output, Extra]:
        return answer, self._copied(others)

    def share_second(self, output: Output, proposals: Output) -> tuple[Extra, Extra]:
        return self._copied(output), self._copied(proposals)

    def _copied(self, output: Output) -> Extra:
        return Extra(output, copies=self.copies, weight=self.weight)
