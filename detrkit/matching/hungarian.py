"""Bipartite matching of queries to objects, for all decoder layers with one transfer from the device."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from detrkit.matching.costs import Cost
from detrkit.recipe import Factory, Slot, define_slot, register
from detrkit.structures import Matches, Output, Targets

define_slot("matcher", offers=())

Costs = Annotated[dict[str, Factory], Slot("cost")]


@register("matcher", "hungarian")
class HungarianMatcher(nn.Module):
    """The assignment of least cost, for each image and decoder layer on its own (DETR, section 3.1).

    Args:
        costs: the summands of the cost, each with its weight.

    A cost that is not finite counts as the worst cost of its image, so one broken prediction does not stop a run;
    `bad_costs` counts them.
    """

    def __init__(self, *, costs: Costs):
        super().__init__()
        self.costs: dict[str, Cost] = {name: factory() for name, factory in costs.items()}
        self.bad_costs = 0

    @torch.no_grad()
    def cost(self, output: Output, targets: Targets) -> Tensor:
        """The weighted sum of costs [Y, B, N, T]; columns beyond an image's count mean nothing."""
        return sum(cost.weight * cost(output, targets) for cost in self.costs.values())

    @torch.no_grad()
    def forward(self, output: Output, targets: Targets) -> Matches:
        layers, batch, queries = output.logits.shape[:3]
        device = output.logits.device
        if not max(targets.counts):
            empty = torch.zeros(layers, 0, dtype=torch.int64, device=device)
            return Matches(empty[0], empty, empty)
        costs = self.cost(output, targets).cpu().numpy()  # the step's one wait for the device
        pairs = np.empty((2, layers, sum(min(queries, n) for n in targets.counts)), dtype=np.int64)
        for layer in range(layers):
            start = 0
            for image, count in enumerate(targets.counts):
                stop = start + min(queries, count)
                pairs[:, layer, start:stop] = self.assign(costs[layer, image, :, :count])
                start = stop
        image = np.repeat(np.arange(batch), [min(queries, n) for n in targets.counts])
        query, target = torch.from_numpy(pairs).to(device, non_blocking=True)
        return Matches(torch.from_numpy(image).to(device, non_blocking=True), query, target)

    def assign(self, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least-cost pairs (rows ascending, columns) of one cost matrix [N, T]."""
        finite = np.isfinite(cost)
        if not finite.all():
            self.bad_costs += int(cost.size - finite.sum())
            worst = cost[finite].max() if finite.any() else 0.0
            cost = np.where(finite, cost, worst + 1.0)
        return linear_sum_assignment(cost)
