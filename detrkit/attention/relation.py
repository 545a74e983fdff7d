"""How the boxes of two queries lie to one another, as a term of self-attention (Relation DETR)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from detrkit.attention.query_position import QueryPositionPart
from detrkit.attention.self_terms import SelfTerm
from detrkit.position import Temperature, sine_code
from detrkit.recipe import register
from detrkit.structures import Memory, Queries, QueryPosition, Relation

EPS = 1e-5
"""added to widths and heights"""


def box_relation(looking: Tensor, seen: Tensor) -> Tensor:
    """[B, N, N, 4] how boxes [B, N, 4] (cx, cy, w, h) that are seen lie to those that look (Relation DETR).

    (log(|dx| / w + 1), log(|dy| / h + 1), log(w / w_seen), log(h / h_seen)), w and h of the box that looks.
    """
    looking, seen = looking[:, :, None], seen[:, None]
    size = looking[..., 2:] + EPS
    away = torch.log((looking[..., :2] - seen[..., :2]).abs() / size + 1)
    return torch.cat((away, torch.log(size / (seen[..., 2:] + EPS))), dim=-1)


@register("query_position", "relation")
class RelationPosition(QueryPositionPart):
    """The relation "relation" of each query's box one layer ago to every query's box now (Relation DETR, section 4.1).

    ReLU(linear(sine code of the four numbers of `box_relation`)), one for each head, the same weights in all layers.
    The boxes are the layers' predictions, without graph; the first layer, before which there is none, has no relation.
    Takes 4 * channels numbers for each pair of queries, which training keeps for every layer.

    Needs the term "relation" in `decoder.self_attention.terms`.

    Args:
        heads: H.
        channels: of each number's code.
        temperature: base of the code's frequencies.
        scale: what numbers are multiplied by in the code.
    """

    embeddings = ()
    relations = ("relation",)
    reads_boxes = True

    def __init__(
        self,
        *,
        heads: int,
        channels: Annotated[int, Field(ge=2, le=1024, multiple_of=2)] = 16,
        temperature: Temperature = 10000.0,
        scale: Annotated[float, Field(gt=0)] = 100.0,
    ):
        super().__init__()
        self.channels, self.temperature, self.scale = channels, temperature, scale / (2 * math.pi)
        self.project = nn.Linear(4 * channels, heads)

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        if queries.boxes is None:
            return QueryPosition(relations={"relation": None})
        before, now = queries.boxes

        def relation(places: slice) -> Tensor:
            numbers = box_relation(before[:, places], now[:, places])
            code = sine_code(self.scale * numbers, self.channels, self.temperature)
            return self.project(code).relu().movedim(-1, 1)

        return QueryPosition(relations={"relation": relation})


@register("self_term", "relation")
class RelationTerm(SelfTerm):
    """What the position "relation" says of two queries' boxes, as it is (Relation DETR, section 4.2).

    It helps to tell duplicates apart. Of the queries that training adds, denoising slots and groups have it, a second
    set of which several queries answer for each object (block "hybrid") has not.

    Needs the position "relation" in `decoder.positions`.
    """

    relations = ("relation",)

    def __init__(self):
        super().__init__()  # named here, because a recipe's options are a constructor's parameters

    def forward(self, content: Tensor, position: QueryPosition) -> Relation | None:
        return position.relations["relation"]
