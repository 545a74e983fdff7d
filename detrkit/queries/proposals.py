"""The encoder's own predictions: each token scores what is there, and proposes a box around its cell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detrkit.heads import Head
from detrkit.layers import at_most
from detrkit.recipe import Given, as_factory
from detrkit.structures import Memory


class Start(NamedTuple):
    """What each token's proposal starts from."""

    tokens: Tensor
    """[B, L, D] projected and normed"""
    boxes: Tensor
    """[B, L, 4] logits of a box around the cell, infinite where it is not usable: its box is then (1, 1, 1, 1)"""
    usable: Tensor
    """[B, L] bool: not padded, and away from the image's edges"""

    def scored(self, scores: Tensor, *, skip_unusable: bool) -> Tensor:
        """Scores [B, L] to choose by: -inf where a token is not usable, if those are to come last."""
        return scores.masked_fill(~self.usable, -torch.inf) if skip_unusable else scores


class Proposals(nn.Module):
    """A head over the encoder's tokens (Deformable DETR, section A.4).

    A token's box starts around its cell with sides of 0.05 of the image, doubled from level to level. It is usable if
    all four numbers lie in (0.01, 0.99) and the cell is no padding. Tokens that are not usable are read as zeros, so
    they all have one score.

    Args:
        width: D.
        classes: K.
        head: factory of the head, the decoder's kind with weights of its own; its `size_start` is the decoder's alone.
    """

    def __init__(self, *, width: int, classes: int, head: Given):
        super().__init__()
        self.project, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.project.weight)
        self.head: Head = as_factory("head", head)(
            width=width,
            classes=classes,
            layers=1,
            offset_widths={"box": 4},
            size_offsets=(),  # sizes start from the cell's
        )

    def forward(self, memory: Memory) -> Start:
        """What every token's proposal starts from; `head` reads its tokens."""
        centers = memory.centers()
        sides = [c.new_full(c.shape, 0.05 * 2**level) for level, c in enumerate(memory.split(centers))]
        boxes = torch.cat((centers, torch.cat(sides, dim=1)), dim=-1)
        usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
        if memory.mask is not None:
            usable = usable & ~memory.mask
        usable = usable.expand(memory.tokens.shape[0], -1)
        boxes = torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf)
        tokens = self.norm(self.project(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        return Start(tokens, boxes, usable)


def ranked(scores: Tensor, count: int, groups: int) -> Tensor:
    """Places [B, groups * N] of the best scores [B, L]: group by group, best first; N = min(count, L).

    Where there are not enough for all groups, the later ones begin again with the best.
    """
    if groups == 1:
        return best(scores, count)
    places = best(scores, groups * count)
    count = min(count, scores.shape[1])
    return places[:, torch.arange(groups * count, device=places.device) % places.shape[1]]


def best(scores: Tensor, count: int) -> Tensor:
    """Places [B, N] of the best scores [B, L], best first; N = min(count, L)."""
    return scores.topk(at_most(count, scores.shape[1]), dim=1).indices
