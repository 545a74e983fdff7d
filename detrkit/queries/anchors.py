"""Learned anchor boxes as queries (DAB-DETR)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from detrkit.boxes import inverse_sigmoid
from detrkit.geometry.base import Geometry
from detrkit.layers import Count
from detrkit.recipe import define_slot, register
from detrkit.structures import Memory, Queries

define_slot("queries", offers=("width", "geometry", "classes", "head"))


@register("queries", "anchor_boxes")
class AnchorBoxQueries(nn.Module):
    """Learned boxes with content of zero, or with patterns (DAB-DETR, section 4.1).

    Args:
        width: D.
        geometry: turns the boxes into references.
        count: anchors.
        content: "zero", or "learned", a vector for each anchor (DINO without query selection).
        patterns: learned content vectors; with P of them each anchor is used P times, pattern by pattern, so that
            N = P * count. 0: none; they add to the content.
        centers: where the boxes' centres start: "normal", logits from N(0, 1) (published), or "uniform" over the image
            (the official code's `random_refpoints_xy`).
        initial_size: where their width and height start, as a share of the image.
        size_spread: deviation of their logits around that; the published start is 0.5 and 1.
    """

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        count: Count = 300,
        content: Literal["zero", "learned"] = "zero",
        patterns: Annotated[int, Field(ge=0)] = 0,
        centers: Literal["normal", "uniform"] = "normal",
        initial_size: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        size_spread: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__()
        self.geometry, self.width = geometry, width
        center, size = torch.randn(count, 2), torch.randn(count, 2)
        if centers == "uniform":
            center = inverse_sigmoid(torch.rand(count, 2), eps=1e-3)
        size = size * size_spread + math.log(initial_size / (1 - initial_size))
        self.anchors = nn.Parameter(torch.cat((center, size), dim=-1))
        learned = content == "learned"
        self.content = nn.Parameter(nn.init.xavier_uniform_(torch.empty(count, width))) if learned else None
        self.patterns = nn.Parameter(torch.randn(patterns, width)) if patterns else None

    def forward(self, memory: Memory) -> Queries:
        batch = len(memory.tokens)
        boxes = self.anchors.sigmoid()
        content = boxes.new_zeros(len(boxes), self.width) if self.content is None else self.content
        if self.patterns is not None:
            content = (self.patterns[:, None] + content).flatten(0, 1)
            boxes = boxes.repeat(len(self.patterns), 1)
        return Queries(content.expand(batch, -1, -1), self.geometry.encode(boxes.expand(batch, -1, -1)))
