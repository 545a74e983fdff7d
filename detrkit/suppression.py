"""Which of a decoder layer's queries stand, and which have a better one's box (DDQ)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from detrkit.boxes import center_to_corners
from detrkit.structures import QueryLayout


class Standing(NamedTuple):
    """What suppression says of the queries of all sets, [B, N] bool each."""

    distinct: Tensor
    """those that overlap no better one; slots and the second set are not asked, and count as distinct"""
    listed: Tensor
    """those that enter the loss and the next suppression: the distinct ones, and all of a set whose first query is"""


class Suppression:
    """Suppression without classes between the decoder's layers (Zhang et al., "DDQ", CVPR 2023, section 3.4).

    The official code reads who is distinct off the first query's row of a mask in which a distinct query sees all.
    So where the first query is distinct, all of them count as listed.

    Args:
        iou: the overlap up to which two boxes are distinct.
    """

    def __init__(self, iou: float):
        self.iou = iou

    @torch.no_grad()
    def __call__(
        self, boxes: Tensor, certainty: Tensor, before: Standing | None, layout: QueryLayout | None
    ) -> Standing:
        """Boxes [B, N, 4] (cx, cy, w, h) and their certainty [B, N]; `before` is the layer's before, None: all stand.

        Each image's suppression waits for the device.
        """
        distinct = torch.ones_like(certainty, dtype=torch.bool)
        listed = distinct.clone()
        scores = certainty if before is None else certainty.masked_fill(~before.listed, -torch.inf)
        first = 0 if layout is None or layout.slots is None else len(layout.slots)
        size, groups = (boxes.shape[1], 1) if layout is None else (layout.queries, layout.groups)
        for start in range(first, first + groups * size, size):
            here = slice(start, start + size)
            for image, (corners, score) in enumerate(
                zip(center_to_corners(boxes[:, here]), scores[:, here], strict=True)
            ):
                stands = torch.zeros_like(distinct[image, here])
                stands[nms(corners, score.to(corners.dtype), self.iou)] = True
                stands &= score > -torch.inf
                distinct[image, here] = stands
                listed[image, here] = stands | stands[:1]
        return Standing(distinct, listed)
