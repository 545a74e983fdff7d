"""The encoder's own predictions: each token scores what is there, and proposes a box around its cell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detrkit.heads import Head, HeadOutput
from detrkit.layers import at_most, take
from detrkit.recipe import Given, as_factory
from detrkit.structures import Memory, Output


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

    def boxes_of(self, raw: HeadOutput, places: Tensor) -> Tensor:
        """[B, N, 4] the boxes that a head's numbers for the tokens at places [B, N] mean."""
        return torch.sigmoid(raw.offsets["box"] + take(self.boxes, places))


def proposal_head(head: Given, *, width: int, classes: int) -> Head:
    """A head of the decoder's kind for the encoder's tokens."""
    return as_factory("head", head)(
        width=width,
        classes=classes,
        layers=1,
        offset_widths={"box": 4},
        size_offsets=(),  # sizes start from the cell's
    )


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
        self.head = proposal_head(head, width=width, classes=classes)

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


class SecondProposals(nn.Module):
    """What a second set of queries starts from: the best tokens by a head of their own (Relation DETR, DDQ).

    Args:
        width: D.
        classes: K.
        head: factory of the head.
        count: M.
    """

    def __init__(self, *, width: int, classes: int, head: Given, count: int):
        super().__init__()
        self.count, self.head = count, proposal_head(head, width=width, classes=classes)

    def forward(self, start: Start, memory: Memory, *, skip_unusable: bool) -> tuple[Tensor, Output]:
        """The tokens' places [B, M], and what the head says of them; M is at most the number of tokens."""
        scores = start.scored(self.head.certainty(0, start.tokens), skip_unusable=skip_unusable)
        places = best(scores, self.count)
        raw = self.head(0, take(start.tokens, places))
        return places, proposed(raw, start.boxes_of(raw, places), memory, self.head)


def proposed(raw: HeadOutput, boxes: Tensor, memory: Memory, head: Head) -> Output:
    """The encoder's predictions as one layer's output; a box's point, for costs that ask for one, is its middle."""
    return Output(
        logits=raw.logits[None],
        boxes=boxes[None],
        encoded=memory,
        points=boxes[None, ..., :2],
        objectness=None if raw.objectness is None else raw.objectness[None],
        background=head.background,
    )


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
