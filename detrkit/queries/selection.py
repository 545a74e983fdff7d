"""Queries that the encoder chooses: its best proposals become the decoder's first references.

A map may hold fewer tokens than `count` (C5 of a 480 x 480 image has 225). Then all tokens are taken, best first, and
the batch has as many queries as the map has tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from detrkit.decoder import QueryDecoder
from detrkit.errors import UserError
from detrkit.geometry.base import Geometry
from detrkit.layers import Count, take
from detrkit.position import sine_code
from detrkit.queries.base import SECOND, QueryGenerator
from detrkit.queries.proposals import Proposals, SecondProposals, proposed, ranked
from detrkit.recipe import Given, register
from detrkit.structures import Extra, Memory, Queries, QueryLimit


@register("queries", "mixed_selection")
class MixedSelectionQueries(QueryGenerator):
    """References from the encoder's best tokens, content learned for each rank (DINO, section 3.4).

    The chosen proposals are trained by the extra "encoder", matched and weighted as the answer is. With fewer tokens
    than `count`, rank r keeps its content and the ranks beyond the tokens are left out of that batch. A second group of
    queries is the next best N tokens, with content of its own; "encoder" trains those of the first. A second set is the
    best tokens by a head of its own, with content of its own.

    Args:
        width: D.
        groups: how many groups of content there are.
        second: queries of a second set; 0 for none.
        geometry: turns the chosen boxes into references.
        classes: K.
        head: factory of the decoder's head; the encoder gets one of its own.
        count: N.
        skip_unusable: choose padded cells and cells at the image's edge only when nothing else is left. The published
            code does not: such tokens share one score, and where it is high they are all chosen, with the box
            (1, 1, 1, 1).
        start: how content is drawn: "xavier", uniform (DINO), or "normal", of deviation 1 (Relation DETR).
    """

    makes_groups = True
    makes_second = True

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        classes: int,
        head: Given,
        groups: int = 1,
        second: int = 0,
        count: Count = 300,
        skip_unusable: bool = False,
        start: Literal["xavier", "normal"] = "xavier",
    ):
        super().__init__()
        self.geometry, self.count, self.skip_unusable = geometry, count, skip_unusable
        self.proposals = Proposals(width=width, classes=classes, head=head)
        self.limit = QueryLimit(count, "queries.count")
        draw = nn.init.xavier_uniform_ if start == "xavier" else nn.init.normal_
        self.content = nn.Parameter(draw(torch.empty(groups * count, width)))
        self.second: SecondProposals | None = None
        if second:
            self.second = SecondProposals(width=width, classes=classes, head=head, count=second)
            self.second_content = nn.Parameter(draw(torch.empty(second, width)))

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        return self._made(memory, groups, None)

    def with_second(self, memory: Memory, groups: int = 1) -> Queries:
        return self._made(memory, groups, self.second)

    def _made(self, memory: Memory, groups: int, second: SecondProposals | None) -> Queries:
        start = self.proposals(memory)
        scores = self.proposals.head.certainty(0, start.tokens)
        scores = start.scored(scores, skip_unusable=self.skip_unusable)
        chosen = ranked(scores, self.count, groups)
        raw = self.proposals.head(0, take(start.tokens, chosen))
        boxes = start.boxes_of(raw, chosen)
        size = chosen.shape[1] // groups
        content = by_rank(self.content, self.count, groups, boxes)
        extras = {"encoder": Extra(proposed(raw, boxes, memory, self.proposals.head).rows(slice(size)))}
        if second is not None:
            _, output = second(start, memory, skip_unusable=self.skip_unusable)
            boxes = torch.cat((boxes, output.boxes[0]), dim=1)
            content = torch.cat((content, by_rank(self.second_content, second.count, 1, output.boxes[0])), dim=1)
            extras[SECOND] = Extra(output)
        return Queries(content, self.geometry.encode(boxes.detach()), extras=extras)


@register("queries", "two_stage")
class TwoStageQueries(QueryGenerator):
    """References, content and embedding all from the encoder's best proposals (Deformable DETR, section 4.2).

    A token's score is its logit of class 0. The extra "encoder" trains all tokens to tell objects from background,
    whatever their class. Content and embedding are a projection of the chosen boxes' sine code. A second group of
    queries is the next best N tokens (H-DETR, official code). With fewer tokens than `count`, rank r keeps its learned
    content and the ranks beyond the tokens are left out of that batch.

    Needs the position "learned", which reads the embedding, where `content = "learned"`.

    Args:
        width: D.
        geometry: turns the chosen boxes into references.
        classes: K.
        head: factory of the decoder's head; the encoder gets one of its own.
        groups: how many groups of queries are asked for at most.
        count: N; fewer where the map has fewer tokens.
        skip_unusable: choose padded cells and cells at the image's edge only when nothing else is left, which the
            published code does not (see `MixedSelectionQueries`).
        content: "boxes", as above, or "learned" for each rank, as in DINO (mixed selection of H-DETR's code; what would
            be content then only takes part in the projection's norm).
        matched_by: what objects are matched with in the encoder: its "proposals", or the "anchors" that these start
            from, whatever they say of classes (MS-DETR, official code).
    """

    embeds_boxes = True
    makes_groups = True

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        classes: int,
        head: Given,
        groups: int = 1,
        count: Count = 300,
        skip_unusable: bool = False,
        content: Literal["boxes", "learned"] = "boxes",
        matched_by: Literal["proposals", "anchors"] = "proposals",
    ):
        super().__init__()
        self.matched_by = matched_by
        self.geometry, self.count, self.half_width = geometry, count, width // 2
        self.skip_unusable = skip_unusable
        self.proposals = Proposals(width=width, classes=classes, head=head)
        self.limit = QueryLimit(count, "queries.count")
        self.place, self.norm = nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width)
        nn.init.xavier_uniform_(self.place.weight)
        self.content = nn.Parameter(torch.randn(groups * count, width)) if content == "learned" else None

    def check(self, decoder: QueryDecoder) -> None:
        """Raise UserError if nothing reads the projection of the boxes' code, whose weights would not train."""
        if self.content is not None and decoder.embedding_readers is not None and not decoder.embedding_readers:
            raise UserError(
                'queries "two_stage" with queries.content = "learned" leave the embedding as all that tells of the '
                "chosen boxes' code, and no part of decoder.positions says that it reads it (`reads_embeddings`). Name "
                '"learned" there, or take queries "mixed_selection", which have no such code'
            )

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        start = self.proposals(memory)
        raw = self.proposals.head(0, start.tokens)
        boxes = torch.sigmoid(raw.offsets["box"] + start.boxes)
        scores = raw.logits[..., 0]
        scores = start.scored(scores, skip_unusable=self.skip_unusable)
        chosen = take(boxes, ranked(scores, self.count, groups)).detach()
        embedding, content = self._starts(chosen)
        if self.content is not None:
            content = by_rank(self.content, self.count, groups, chosen)
        output = proposed(raw, boxes, memory, self.proposals.head)
        anchors = None
        if self.matched_by == "anchors":
            places = start.boxes.sigmoid()
            anchors = replace(
                output, logits=torch.zeros_like(output.logits), boxes=places[None], points=places[None, ..., :2]
            )
        extras = {"encoder": Extra(output, classless=True, matched_as=anchors)}
        return Queries(content, self.geometry.encode(chosen), embedding, extras)

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """The embedding [..., D] of any boxes [..., 4], as the chosen ones have it; denoising asks for it."""
        return self._starts(boxes)[0]

    def _starts(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding and content [..., D] of boxes [..., 4]."""
        code = sine_code(boxes, self.half_width, temperature=10000.0)
        return self.norm(self.place(code)).chunk(2, dim=-1)


def by_rank(content: Tensor, count: int, groups: int, chosen: Tensor) -> Tensor:
    """The content [B, groups * N, D] of chosen boxes [B, groups * N, 4], from that of all groups' ranks.

    content: [at least groups * count, D], group by group; N is at most `count`.
    """
    size = chosen.shape[1] // groups
    ranks = content[: groups * count].unflatten(0, (groups, -1))[:, :size].flatten(0, 1)
    return ranks.expand(chosen.shape[0], -1, -1)
