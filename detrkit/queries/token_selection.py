"""Queries that are the encoder's best tokens, with their content (RT-DETR)."""

from __future__ import annotations

from detrkit.geometry.base import Geometry
from detrkit.layers import Count, take
from detrkit.queries.base import QueryGenerator
from detrkit.queries.proposals import Proposals, best, proposed
from detrkit.recipe import Given, register
from detrkit.structures import Extra, Memory, Queries, QueryLimit


@register("queries", "token_selection")
class TokenSelectionQueries(QueryGenerator):
    """References and content from the encoder's best tokens (RT-DETR, section 4.3).

    A token's score is its best class logit. With a class loss whose target is the box's quality, such as "varifocal",
    tokens with good boxes are chosen, which is all that the paper's uncertainty-minimal selection does. Content is the
    token, projected and normed, without its graph; the chosen proposals are trained by the extra "encoder", matched and
    weighted as the answer is. With fewer tokens than `count` all are taken.

    Args:
        width: D.
        geometry: turns the chosen boxes into references.
        classes: K.
        head: factory of the decoder's head; the encoder gets one of its own.
        count: N.
    """

    def __init__(self, *, width: int, geometry: Geometry, classes: int, head: Given, count: Count = 300):
        super().__init__()
        self.geometry, self.count = geometry, count
        self.proposals = Proposals(width=width, classes=classes, head=head)
        self.limit = QueryLimit(count, "queries.count")

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        start = self.proposals(memory)
        chosen = best(self.proposals.head.certainty(0, start.tokens), self.count)
        tokens = take(start.tokens, chosen)
        raw = self.proposals.head(0, tokens)
        boxes = start.boxes_of(raw, chosen)
        encoder = Extra(proposed(raw, boxes, memory, self.proposals.head))
        return Queries(tokens.detach(), self.geometry.encode(boxes.detach()), extras={"encoder": encoder})
