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
from detrkit.recipe import define_slot, register
from detrkit.structures import Memory, Queries

define_slot("queries", offers=("width", "classes", "geometry", "groups"))


@register("queries", "anchor_boxes")
class AnchorBoxQueries(nn.Module):
    """Learned boxes with content of zero, or with patterns (DAB-DETR, section 4.1).

    Args:
        width: D.
        classes: K.
        geometry: turns the boxes into references.
        groups: how many groups of anchors there are, each with its own.
        count: anchors.
        patterns: learned content vectors; with P of them each anchor is used P times, pattern by pattern, so that
            N = P * count. 0: none.
        content: what patterns are added to: "zero", or "label", the last row of a table of labels [K + 1, D - 1]
            with a last channel of 0 (DN-DETR: denoising queries have their label's row and a 1 there).
        centers: where the boxes' centres start: "normal", logits from N(0, 1) (published), or "uniform" over the image
            (the official code's `random_refpoints_xy`).
        initial_size: where their width and height start, as a share of the image.
        size_spread: deviation of their logits around that; the published start is 0.5 and 1.
    """

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        geometry: Geometry,
        groups: int = 1,
        count: Count = 300,
        patterns: Annotated[int, Field(ge=0)] = 0,
        content: Literal["zero", "label"] = "zero",
        centers: Literal["normal", "uniform"] = "normal",
        initial_size: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        size_spread: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__()
        self.geometry, self.width, self.count = geometry, width, count
        rows = groups * count
        center, size = torch.randn(rows, 2), torch.randn(rows, 2)
        if centers == "uniform":
            center = inverse_sigmoid(torch.rand(rows, 2), eps=1e-3)
        size = size * size_spread + math.log(initial_size / (1 - initial_size))
        self.anchors = nn.Parameter(torch.cat((center, size), dim=-1))
        self.patterns = nn.Parameter(torch.randn(patterns, width)) if patterns else None

        self.labels = nn.Parameter(torch.randn(classes + 1, width - 1)) if content == "label" else None

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        """The queries of the first `groups` groups."""
        batch = len(memory.tokens)
        boxes = self.anchors[: groups * self.count].sigmoid().unflatten(0, (groups, self.count))
        content = boxes.new_zeros(1, self.width) if self.labels is None else F.pad(self.labels[-1:], (0, 1))
        if self.patterns is not None:
            content = content + self.patterns
        boxes = boxes.repeat(1, len(content), 1)  # [groups, N, 4]
        content = content.repeat_interleave(self.count, dim=0).repeat(groups, 1)
        return Queries(
            content.expand(batch, -1, -1),
            self.geometry.encode(boxes.flatten(0, 1).expand(batch, -1, -1)),
            labels=self.labels,
        )
