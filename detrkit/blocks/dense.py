"""More queries in training, close to one another, of which several answer for each object (DDQ's dense branch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from detrkit.blocks.base import Block
from detrkit.boxes import center_to_corners, overlaps
from detrkit.layers import Arriving, Count
from detrkit.matching.costs import FocalCost, GIoUCost, L1Cost
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.recipe import Given, register
from detrkit.structures import Extra, Matches, Output, Targets

Exponent = Annotated[float, Field(ge=0, le=100)]


@register("block", "dense")
class DenseQueries(Block):
    """A second set of the encoder's best tokens, without suppression (Zhang et al., "DDQ", CVPR 2023, section 3.4).

    Its queries see one another and never the answer; a head of their own finds them. Each object has up to `copies` of
    them, by least cost (focal 2, L1 of the corners 5, GIoU 2; as in the official code, the focal cost takes
    probabilities for logits). A pair counts t = m max(u) / max(m), m = p^alpha u^beta of its class probability p and
    its IoU u, the largest ones those of its object's pairs; losses are divided by the sum of t, in all processes, at
    least 1. Its proposals in the encoder are trained alike. Outside training there is the answer alone.

    Losses that do not know what pairs count should weigh 0 in the extras "dense" and "dense_encoder" (the block's name
    in the recipe); "quality_focal" and "giou" know it.

    Needs queries "mixed_selection" or "distinct_selection".

    Args:
        count: queries of the set; 1.5 times the answer's as published.
        copies: of an object, fewer where there are not enough queries; published 4.
        alpha, beta: exponents of score and IoU.
    """

    def __init__(self, *, count: Count = 450, copies: Count = 4, alpha: Exponent = 1.0, beta: Exponent = 6.0):
        super().__init__()
        self.second, self.copies, self.alpha, self.beta = count, copies, alpha, beta
        costs: dict[str, Given] = {
            "class": FocalCost(log_eps=1e-12),
            "box": L1Cost(form="corners"),
            "giou": GIoUCost(eps=0.0),
        }
        self.matcher = HungarianMatcher(costs=costs)

    def share_second(self, output: Output, proposals: Output) -> tuple[Extra, Extra]:
        of_layers, of_encoder = (Extra(one, assign=self.assign, by_weight=True) for one in (output, proposals))
        return of_layers, of_encoder

    @torch.no_grad()
    def assign(self, output: Output, targets: Targets) -> Callable[[], Sequence[Matches]]:
        """Begins to bring the costs over; what it returns gives the pairs of each layer and what they count."""
        costs = self.matcher.cost(replace(output, logits=output.logits.sigmoid()), targets)
        return partial(self._pairs, Arriving(costs), output, targets)

    @torch.no_grad()
    def _pairs(self, arriving: Arriving, output: Output, targets: Targets) -> list[Matches]:
        found = [self._matches(cost, targets.counts) for cost in arriving.read().numpy()]
        placed = [matches.to(output.logits.device) for matches in found]
        return [self._weighed(matches, output.layer(layer), targets) for layer, matches in enumerate(placed)]

    def _matches(self, cost: np.ndarray, counts: tuple[int, ...]) -> Matches:
        """The pairs of one layer's costs [B, N, T]."""
        images, queries, places = ([np.zeros(0, np.int64)] for _ in range(3))
        for image, count in enumerate(counts):
            if count:
                copies = max(1, min(self.copies, cost.shape[1] // count))  # with fewer queries some objects have none
                rows, columns = self.matcher.assign(np.repeat(cost[image, :, :count], copies, axis=1))
                images.append(np.full(len(rows), image))
                queries.append(rows)
                places.append(columns // copies)
        image_of, query, target = (torch.from_numpy(np.concatenate(x)).long() for x in (images, queries, places))
        return Matches(image_of, query[None], target[None])

    def _weighed(self, matches: Matches, output: Output, targets: Targets) -> Matches:
        """The pairs [1, M] of one layer with what they count."""
        boxes, truth = matches.take(output.boxes), matches.take_targets(targets.boxes)
        iou = overlaps(center_to_corners(boxes), center_to_corners(truth))[0]
        labels = matches.take_targets(targets.labels)
        chance = matches.take(output.logits).gather(-1, labels[..., None]).squeeze(-1).sigmoid()
        aligned = chance**self.alpha * iou**self.beta
        owner = (matches.image * targets.labels.shape[1] + matches.target)[0]

        def largest(values: Tensor) -> Tensor:
            """Of the pairs of the same object [1, M]."""
            table = values.new_zeros(targets.labels.numel())
            return table.scatter_reduce(0, owner, values[0], "amax")[owner][None]

        return replace(matches, weight=aligned / (largest(aligned) + 1e-7) * largest(iou))
