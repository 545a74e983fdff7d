"""Learned anchor boxes as queries (DAB-DETR)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from detrkit.geometry.base import Geometry
from detrkit.layers import Count
from detrkit.recipe import define_slot, register
from detrkit.structures import Memory, Queries

define_slot("queries", offers=("width", "geometry"))


@register("queries", "anchor_boxes")
class AnchorBoxQueries(nn.Module):
    """Learned boxes with content of zero, or with patterns (DAB-DETR, section 4.1).

    Args:
        width: D.
        geometry: turns the boxes into references.
        count: anchors.
        patterns: learned content vectors; with P of them each anchor is used P times, pattern by pattern, so that
            N = P * count. 0: content starts at zero.
    """

    def __init__(
        self,
        *,
        width: int,
        geometry: Geometry,
        count: Count = 300,
        patterns: Annotated[int, Field(ge=0)] = 0,
    ):
        super().__init__()
        self.geometry, self.width = geometry, width
        self.anchors = nn.Parameter(torch.randn(count, 4))
        self.patterns = nn.Parameter(torch.randn(patterns, width)) if patterns else None

    def forward(self, memory: Memory) -> Queries:
        batch = len(memory.tokens)
        boxes = self.anchors.sigmoid()
        if self.patterns is None:
            content = boxes.new_zeros(batch, len(boxes), self.width)
        else:
            content = self.patterns.repeat_interleave(len(boxes), dim=0).expand(batch, -1, -1)
            boxes = boxes.repeat(len(self.patterns), 1)
        return Queries(content, self.geometry.encode(boxes.expand(batch, -1, -1)))
