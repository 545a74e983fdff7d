"""Several queries for each object, which count less and less (Align-DETR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from detrkit.boxes import center_to_corners, overlaps
from detrkit.layers import Count
from detrkit.matching.hungarian import Costs, HungarianMatcher, of_standing
from detrkit.recipe import register
from detrkit.structures import Matches, Output, Targets


@register("matcher", "many_to_one")
class ManyToOneMatcher(HungarianMatcher):
    """The assignment of least cost of K queries to each object, in the answer's last layer of one (Align-DETR, 3.3).

    Of an object's queries, the one of rank r = 0, 1, ... by p^alpha u^(1 - alpha), highest first, counts exp(-r / tau),
    p its probability of the object's class and u the IoU. Where an image's objects would take more than half of the
    queries, each gets fewer, at least one. (The official code then gives that fewer to the images after it, too, and
    none at all where there are more objects than half of the queries.)

    Needs losses that know what pairs count: "iou_aware", "l1", "giou".

    Args:
        costs: the summands of the cost, each with its weight.
        count: K.
        tau: how slowly weights fall with the rank.
        alpha: share of the score in what queries are ranked by.
    """

    weighs_pairs = True

    def __init__(
        self,
        *,
        costs: Costs,
        count: Count = 2,
        tau: Annotated[float, Field(gt=0, le=1e6)] = 1.5,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.25,
    ):
        super().__init__(costs=costs)
        self.count, self.tau, self.alpha = count, tau, alpha

    @torch.no_grad()
    def match(self, requests: Sequence[tuple[Output, Targets]]) -> Sequence[Sequence[Matches]]:
        found = []
        for index, (costs, (output, targets)) in enumerate(zip(self.on_host(requests), requests, strict=True)):
            counts = [self.count] * len(costs)
            if not index:
                counts[-1] = 1
            pairs = [self._pairs(cost, targets.counts, output.groups, n) for cost, n in zip(costs, counts, strict=True)]
            placed = [one.to(output.logits.device) for one in pairs]
            found.append([self._weighted(one, output.layer(layer), targets) for layer, one in enumerate(placed)])
        return found

    def _pairs(self, cost: np.ndarray, counts: tuple[int, ...], groups: int, most: int) -> Matches:
        """The pairs of one layer's costs [B, N, T], up to so many of each object in each group."""
        size = cost.shape[1] // groups
        images, rows, columns = [], [], []
        for place, count in enumerate(counts):
            copies = max(min(size // (2 * count), most), 1) if count else 1
            for first in [group * size for group in range(groups)]:
                queries, places = self.assign(np.tile(cost[place, first : first + size, :count], (1, copies)))
                images.append(np.full(len(queries), place))
                rows.append(queries + first)
                columns.append(places % max(count, 1))
        image, query, target = (torch.from_numpy(np.concatenate(x).astype(np.int64)) for x in (images, rows, columns))
        return Matches(image, query[None], target[None])

    def _weighted(self, matches: Matches, output: Output, targets: Targets) -> Matches:
        """The pairs [1, M] with what they count. Pairs of one object in different groups are ranked apart."""
        boxes, truth = matches.take(output.boxes), matches.take_targets(targets.boxes)
        iou = overlaps(center_to_corners(boxes), center_to_corners(truth))[0]
        labels = matches.take_targets(targets.labels)
        chance = matches.take(output.logits).gather(-1, labels[..., None]).squeeze(-1).sigmoid()
        quality = (chance**self.alpha * iou ** (1 - self.alpha)).clamp(min=0.01)[0]
        group = matches.query[0] // (output.logits.shape[2] // output.groups)
        rank = ranks(quality, torch.stack((matches.image, matches.target[0], group)))
        weight = torch.exp(-rank.to(output.boxes.dtype) / self.tau)[None]
        return of_standing(replace(matches, weight=weight), output)


def ranks(quality: Tensor, owner: Tensor) -> Tensor:
    """[M] how many of the same owner [F, M] are better; of those that are equally good, the first ones are."""
    same = (owner[:, :, None] == owner[:, None]).all(0)
    place = torch.arange(len(quality), device=quality.device)
    better = (quality > quality[:, None]) | ((quality == quality[:, None]) & (place < place[:, None]))
    return (same & better).sum(1)
