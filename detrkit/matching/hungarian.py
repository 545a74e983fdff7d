"""Bipartite matching of queries to objects, for all decoder layers with one transfer from the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from detrkit.errors import UserError
from detrkit.layers import total
from detrkit.matching.base import Matcher
from detrkit.matching.costs import Cost
from detrkit.recipe import Given, Slot, as_factory, register
from detrkit.structures import Matches, Output, Targets

Costs = Annotated[dict[str, Given], Slot("cost")]


def _checked(name: str, cost: Tensor, output: Output, targets: Targets) -> Tensor:
    wanted = (*output.logits.shape[:3], targets.boxes.shape[1])
    if not isinstance(cost, Tensor) or cost.shape != wanted:
        given = list(cost.shape) if isinstance(cost, Tensor) else f"a {type(cost).__name__}"
        raise UserError(f"matcher.costs.{name} gives {given}, should be [Y, B, N, T] = {list(wanted)}")
    return cost


def of_standing(matches: Matches, output: Output) -> Matches:
    """The matches, of which those of queries that do not stand teach no class: their logits were silenced."""
    return matches if output.standing is None else replace(matches, teaches=matches.take(output.standing))


@register("matcher", "hungarian")
class HungarianMatcher(Matcher):
    """The assignment of least cost, for each image and decoder layer on its own (DETR, section 3.1).

    Args:
        costs: the summands of the cost, each with its weight.

    A cost that is not finite counts as the worst cost of its image, so one broken prediction does not stop a run;
    `bad_costs` counts them.
    """

    def __init__(self, *, costs: Costs):
        super().__init__()
        if not costs:
            raise UserError(
                "matcher.costs is empty, so nothing says which query answers which object; name a cost (a matcher.type "
                "that changes drops those of the recipe's base)"
            )
        self.costs: dict[str, Cost] = {name: as_factory("cost", given)() for name, given in costs.items()}
        self.bad_costs = 0

    @torch.no_grad()
    def cost(self, output: Output, targets: Targets) -> Tensor:
        """The weighted sum of costs [Y, B, N, T]; columns beyond an image's count mean nothing.

        Queries that do not stand (`Output.standing`) are matched when no others are left, and learn no class then.
        """
        if output.logits.element_size() < 4:  # alone, without a criterion, which sees to that
            output, targets = output.float(), replace(targets, boxes=targets.boxes.float())
        costs = total(
            cost.weight * _checked(name, cost(output, targets), output, targets) for name, cost in self.costs.items()
        )
        return costs if output.standing is None else costs.masked_fill(~output.standing[..., None], 1e6)

    def forward(self, output: Output, targets: Targets) -> Matches | Sequence[Matches]:
        return self.match([(output, targets)])[0]

    @torch.no_grad()
    def match(self, requests: Sequence[tuple[Output, Targets]]) -> Sequence[Matches | Sequence[Matches]]:
        """The matches of several outputs of a batch, with one wait for the device for all of them.

        Args:
            requests: outputs, each with its truth. Groups of queries are matched each on its own; pairs of an image
                then stand group by group.
        """
        device = requests[0][0].logits.device
        return [
            of_standing(self._matches(cost, targets.counts, output.groups).to(device), output)
            for cost, (output, targets) in zip(self.on_host(requests), requests, strict=True)
        ]

    def on_host(self, requests: Sequence[tuple[Output, Targets]]) -> list[np.ndarray]:
        """The costs [Y, B, N, T] of each request, fetched at once."""
        costs = [self.cost(output, targets) for output, targets in requests]
        host = torch.cat([cost.flatten() for cost in costs]).cpu()  # the step's one wait for the device
        parts = host.split([cost.numel() for cost in costs])
        return [part.view(cost.shape).numpy() for part, cost in zip(parts, costs, strict=True)]

    def _matches(self, costs: np.ndarray, counts: tuple[int, ...], groups: int) -> Matches:
        """The pairs of costs [Y, B, N, T], on the CPU."""
        layers, batch, queries, _ = costs.shape
        size = queries // groups
        numbers = [min(size, count) for count in counts]
        pairs = np.empty((2, layers, groups * sum(numbers)), dtype=np.int64)
        for layer in range(layers):
            start = 0
            for image, (count, number) in enumerate(zip(counts, numbers, strict=True)):
                for first in [group * size for group in range(groups)]:
                    rows, columns = self.assign(costs[layer, image, first : first + size, :count])
                    pairs[0, layer, start : start + number] = rows + first
                    pairs[1, layer, start : start + number] = columns
                    start += number
        images = np.repeat(np.arange(batch), [groups * number for number in numbers])
        query, target = torch.from_numpy(pairs)
        return Matches(torch.from_numpy(images), query, target)

    def assign(self, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least-cost pairs (rows ascending, columns) of one cost matrix [N, T]."""
        from scipy.optimize import linear_sum_assignment  # an eighth of all imports, and a detection matches nothing

        finite = np.isfinite(cost)
        if not finite.all():
            self.bad_costs += int(cost.size - finite.sum())
            worst = cost[finite].max() if finite.any() else 0.0
            cost = np.where(finite, cost, worst + 1.0)
        return linear_sum_assignment(cost)
