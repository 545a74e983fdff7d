"""Queries in the order of their scores, between the decoder's layers (Rank-DETR)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from detrkit.between import BetweenLayers, LayerInput
from detrkit.errors import UserError
from detrkit.layers import xavier_matrices
from detrkit.structures import Queries, QueryLayout


class QueryRanking(BetweenLayers):
    """The query rank layer and the rank-adaptive class head (Pu et al., "Rank-DETR", NeurIPS 2023, section 3.2).

    Before every layer but the first, the queries of each group are put into the order of the best class logit that
    they had, and each rank's learned content is mixed into theirs. In every layer each rank has learned logits that
    are added to the head's. Denoising slots keep their places and have no rank.

    Args:
        width: D.
        logits: K, or one more.
        layers: Y.
        count: the most queries of all groups.
    """

    def __init__(self, *, width: int, logits: int, layers: int, count: int):
        super().__init__()
        self.count = count
        self.content = nn.ParameterList(torch.empty(count, width) for _ in range(layers - 1))
        self.before = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.after = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers - 1))
        xavier_matrices(self)
        self.logits = nn.ParameterList(torch.zeros(count, logits) for _ in range(layers))

    def entering(self, layer: int, queries: Queries) -> Tensor:
        if layer == 0:
            return queries.content
        content = queries.content
        ranks = cast(nn.Linear, self.before[layer - 1])(
            self._of_ranks(self.content[layer - 1], content, queries.layout)
        )
        return cast(nn.Linear, self.after[layer - 1])(torch.cat((content, ranks.expand_as(content)), dim=-1))

    def added(self, layer: int, logits: Tensor, layout: QueryLayout | None) -> Tensor:
        return logits + self._of_ranks(self.logits[layer], logits, layout)

    def forward(self, left: LayerInput, read: Tensor, certainty: Callable[[Tensor], Tensor]) -> LayerInput:
        with torch.no_grad():
            order = self.order(certainty(read), left.queries.layout)
        return left.take(order)

    def order(self, certainty: Tensor, layout: QueryLayout | None) -> Tensor:
        """[B, N] the places in which queries go on, each group's by their certainty [B, N], highest first."""
        slots, sizes = _sizes(certainty, layout)
        sets = [torch.arange(slots, device=certainty.device).expand(len(certainty), -1)] if slots else []
        first = slots
        for size in sizes:
            ranks = certainty[:, first : first + size].detach().argsort(dim=1, descending=True, stable=True)
            sets.append(ranks + first)
            first += size
        return torch.cat(sets, dim=1)

    def _of_ranks(self, table: Tensor, like: Tensor, layout: QueryLayout | None) -> Tensor:
        """Each set's first rows of a table as [N, F], and zeros for slots.

        A set that is smaller than its share, on a map with few tokens, begins where it does on a larger map.
        """
        slots, sizes = _sizes(like, layout)
        total = sum(sizes)
        if total > self.count:
            raise UserError(
                f"decoder.ranked = {self.count} is the most queries that have a rank, and here are {total}, all "
                f"groups counted; set decoder.ranked = {total}"
            )
        rows = [table.new_zeros(slots, table.shape[1])] if slots else []
        before = 0
        for size in sizes:
            start = before * self.count // total if before else 0
            rows.append(table[start : start + size])
            before += size
        return torch.cat(rows)


def _sizes(like: Tensor, layout: QueryLayout | None) -> tuple[int, tuple[int, ...]]:
    """Slots in front, and the queries of each set that is ranked on its own."""
    if layout is None:
        return 0, (like.shape[1],)
    return 0 if layout.slots is None else len(layout.slots), layout.matching
