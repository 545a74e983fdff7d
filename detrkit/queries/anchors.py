"""Learned anchor boxes as queries (DAB-DETR)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from detrkit.boxes import inverse_sigmoid
from detrkit.geometry.base import Geometry
from detrkit.layers import Count
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import register
from detrkit.structures import Memory, Queries, QueryLimit


@register("queries", "anchor_boxes")
class AnchorBoxQueries(QueryGenerator):
    """Learned boxes, with content of zero (DAB-DETR, section 4.1) or what `content` and `patterns` say.

    Args:
        width: D.
        classes: K.
        geometry: turns the boxes into references.
        groups: how many groups of anchors there are, each with its own.
        count: anchors.
        patterns: learned content vectors; with P of them each anchor is used P times, pattern by pattern, so that
            N = P * count. 0: none; they add to the content.
        content: where content starts: at "zero" (DAB-DETR), at a "learned" vector for each anchor (DINO without its
            query selection), or at the "label" table's vector for no class, the same for all anchors: then a denoising
            block with labels = "queries" gives known labels their vectors from the same table, and one last channel,
            0 here, tells the two kinds of queries apart (DN-DETR).
        centers: where the boxes' centres start: "normal", logits from N(0, 1) (published), or "uniform" over the image
            (the official code's `random_refpoints_xy`).
        initial_size: where their width and height start, as a share of the image.
        size_spread: deviation of their logits around that; the published start is 0.5 and 1.
    """

    makes_groups = True

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        geometry: Geometry,
        groups: int = 1,
        count: Count = 300,
        patterns: Annotated[int, Field(ge=0, le=1000)] = 0,
        content: Literal["zero", "learned", "label"] = "zero",
        centers: Literal["normal", "uniform"] = "normal",
        initial_size: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        size_spread: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__()
        self.geometry, self.width, self.count = geometry, width, count
        self.limit = QueryLimit(count * max(patterns, 1), "queries.count")
        rows = groups * count
        center, size = torch.randn(rows, 2), torch.randn(rows, 2)
        if centers == "uniform":
            center = inverse_sigmoid(torch.rand(rows, 2), eps=1e-3)
        size = size * size_spread + math.log(initial_size / (1 - initial_size))
        self.anchors = nn.Parameter(torch.cat((center, size), dim=-1))
        learned = content == "learned"
        self.content = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, width))) if learned else None
        self.patterns = nn.Parameter(torch.randn(patterns, width)) if patterns else None

        self.labels = nn.Parameter(torch.randn(classes + 1, width - 1)) if content == "label" else None

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        """The queries of the first `groups` groups."""
        batch = memory.tokens.shape[0]
        boxes = self.anchors[: groups * self.count].sigmoid().unflatten(0, (groups, 1, self.count))
        if self.labels is not None:
            content = F.pad(self.labels[-1:], (0, 1))
        elif self.content is not None:
            content = self.content[: groups * self.count].unflatten(0, (groups, 1, self.count))
        else:
            content = boxes.new_zeros(1, self.width)
        if self.patterns is not None:
            content = content + self.patterns[:, None]  # [groups or nothing, P, count or 1, D]
            boxes = boxes.expand(-1, len(self.patterns), -1, -1)
        content = content.expand(*boxes.shape[:3], -1).flatten(0, 2)
        return Queries(
            content.expand(batch, -1, -1),
            self.geometry.encode(boxes.flatten(0, 2).expand(batch, -1, -1)),
            labels=self.labels,
        )
