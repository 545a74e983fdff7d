"""Which of a decoder layer's queries stand, and which have a better one's box (DDQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import nms

from detrkit.between import BetweenLayers, LayerInput
from detrkit.boxes import center_to_corners
from detrkit.structures import QueryLayout


class Suppression(BetweenLayers):
    """Suppression without classes between the decoder's layers (Zhang et al., "DDQ", CVPR 2023, section 3.4).

    The official code reads who is distinct off the first query's row of a mask in which a distinct query sees all.
    So where the first query is distinct, all of them count as listed.

    Args:
        iou: the overlap up to which two boxes are distinct.
    """

    def __init__(self, iou: float):
        super().__init__()
        self.iou = iou

    def forward(self, left: LayerInput, read: Tensor, certainty: Callable[[Tensor], Tensor]) -> LayerInput:
        queries = left.queries
        layout = queries.layout or QueryLayout(queries.content.shape[1])
        with torch.no_grad():
            sure = certainty(queries.content)
        distinct, listed = self.standing(queries.reference.boxes(), sure, left.listed, layout)
        return replace(left, queries=replace(queries, layout=replace(layout, passed_over=~distinct)), listed=listed)

    @torch.no_grad()
    def standing(
        self, boxes: Tensor, certainty: Tensor, before: Tensor | None, layout: QueryLayout
    ) -> tuple[Tensor, Tensor]:
        """Who stands, of the queries of all sets; each image's suppression waits for the device.

        Args:
            boxes: [B, N, 4] as (cx, cy, w, h).
            certainty: [B, N].
            before: [B, N] bool, those that were listed by the layer before; None: all.
            layout: slots and the second set are not asked, and stand.

        Returns:
            [B, N] bool, the queries that overlap no better one; [B, N] bool, those that are listed: the distinct ones,
            and all of a set whose first query is. They enter the loss and the next suppression.
        """
        distinct = torch.ones_like(certainty, dtype=torch.bool)
        listed = distinct.clone()
        scores = certainty if before is None else certainty.masked_fill(~before, -torch.inf)
        first, size, groups = layout.answer.start, layout.queries, layout.groups
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
        return distinct, listed
