"""Queries that the encoder chooses so that no two start from the same box (DDQ)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import nms

from detrkit.boxes import center_to_corners
from detrkit.geometry.base import Geometry
from detrkit.layers import Count, at_most, take
from detrkit.queries.base import SECOND, QueryGenerator
from detrkit.queries.proposals import Proposals, SecondProposals, proposed
from detrkit.recipe import Given, register
from detrkit.structures import Extra, Memory, Queries, QueryLimit


@register("queries", "distinct_selection")
class DistinctSelectionQueries(QueryGenerator):
    """References and content from the encoder's best tokens, less those whose box another has (DDQ, section 3.3).

    Of all tokens' proposals, best class logit first, one is passed over if its IoU with an earlier one that stands is
    above `iou`, whatever their classes. Content is a projection of the chosen tokens, which sends no gradient into the
    encoder. The chosen proposals are trained by the extra "encoder", matched and weighted as the answer is. Each
    image's suppression waits for the device. A second set is the best tokens by a head of its own, without suppression.

    Args:
        width: D.
        second: queries of a second set; 0 for none.
        geometry: turns the chosen boxes into references.
        classes: K.
        head: factory of the decoder's head; the encoder gets one of its own.
        count: N; fewer where the map has fewer tokens.
        iou: the overlap up to which two boxes are distinct.
        skip_unusable: choose padded cells and cells at the image's edge only when nothing else is left, which the
            published code does not (see `MixedSelectionQueries`).
        lacking: what follows where fewer than `count` stand: the best of those that were "passed_over", or "nothing":
            no content, the box (0.5, 0.5, 0.5, 0.5) and, in the encoder's loss, logits of 0 (official code).
    """

    makes_second = True

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        classes: int,
        head: Given,
        second: int = 0,
        count: Count = 300,
        iou: Annotated[float, Field(ge=0, le=1)] = 0.8,
        skip_unusable: bool = False,
        lacking: Literal["passed_over", "nothing"] = "passed_over",
    ):
        super().__init__()
        self.geometry, self.count, self.iou, self.skip_unusable = geometry, count, iou, skip_unusable
        self.fills_up = lacking == "passed_over"
        self.proposals = Proposals(width=width, classes=classes, head=head)
        self.content = nn.Linear(width, width)
        self.limit = QueryLimit(count, "queries.count")
        self.second: SecondProposals | None = None
        if second:
            self.second = SecondProposals(width=width, classes=classes, head=head, count=second)

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        return self._made(memory, None)

    def with_second(self, memory: Memory, groups: int = 1) -> Queries:
        return self._made(memory, self.second)

    def _made(self, memory: Memory, second: SecondProposals | None) -> Queries:
        start, head = self.proposals(memory), self.proposals.head
        boxes = torch.sigmoid(head.offsets(0, start.tokens)["box"] + start.boxes)
        scores = head.certainty(0, start.tokens).detach()
        scores = start.scored(scores, skip_unusable=self.skip_unusable)
        chosen, stand = distinct(boxes.detach(), scores, self.count, self.iou)
        raw = head(0, take(start.tokens, chosen))
        boxes = take(boxes, chosen)
        missing = torch.zeros_like(stand) if self.fills_up else ~stand
        raw = raw._replace(logits=raw.logits.masked_fill(missing[..., None], 0.0))
        boxes = boxes.masked_fill(missing[..., None], 0.5)
        extras = {"encoder": Extra(proposed(raw, boxes, memory, head))}
        if second is not None:
            places, output = second(start, memory, skip_unusable=self.skip_unusable)
            chosen, boxes = torch.cat((chosen, places), dim=1), torch.cat((boxes, output.boxes[0]), dim=1)
            extras[SECOND] = Extra(output)
            missing = torch.cat((missing, torch.zeros_like(places, dtype=torch.bool)), dim=1)
        content = self.content(take(memory.tokens, chosen).detach()).masked_fill(missing[..., None], 0.0)
        return Queries(content, self.geometry.encode(boxes.detach()), extras=extras)


def distinct(boxes: Tensor, scores: Tensor, count: int, iou: float) -> tuple[Tensor, Tensor]:
    """Places [B, N] of the best boxes [B, L, 4] (cx, cy, w, h) by scores [B, L] that overlap no better one.

    N = min(count, L); those that do overlap one come after the others, best first too, and those of score -inf last.
    Also [B, N] bool, False for these.
    """
    chosen, stand = [], []
    for corners, score in zip(center_to_corners(boxes), scores.to(boxes.dtype), strict=True):
        passed_over = torch.ones_like(score, dtype=torch.bool)
        passed_over[nms(corners, score, iou)] = False
        passed_over |= score == -torch.inf
        order = score.argsort(descending=True, stable=True)
        order = order[passed_over[order].to(torch.uint8).argsort(stable=True)]
        order = order[: at_most(count, len(order))]
        chosen.append(order)
        stand.append(~passed_over[order])
    return torch.stack(chosen), torch.stack(stand)
