"""Plain multi-head attention with packed input projections, and attention among the decoder's queries."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from detrkit.attention.by_head import attend
from detrkit.casts import CastsOnce
from detrkit.onednn import linear
from detrkit.structures import QueryLayout, Relation


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H * F] to [B, H, N, F]; heads are contiguous runs of channels."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, F] to [B, N, H * F]."""
    return x.transpose(1, 2).flatten(2)


def key_mask(mask: Tensor | None) -> Tensor | None:
    """A padding mask [B, L], True where padded, as fused attention wants it: [B, 1, 1, L], True where allowed."""
    return None if mask is None else ~mask[:, None, None, :]


def self_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: QueryLayout | None,
    *,
    dropout: float,
    bias: Relation | None = None,
) -> Tensor:
    """Attention among the decoder's queries: softmax(q k / sqrt(D / H) + bias) v, as far as the layout lets them see.

    Groups of matching queries are folded into the batch, [B, H, G * N, F] to [B * G, H, N, F], and need no mask: a
    G-th of the work of a masked attention over all of them (Group DETR, section 3.3). Only denoising slots bring a
    mask, over the slots and the first group.

    Args:
        query, key, value: [B, H, N, F], projected; N counts slots and all groups.
        layout: None if all see one another.
        dropout: on attention weights.
        bias: what is added to the logits; None for nothing. It tells apart queries that want the same object, so it
            leaves out the second set, of which several queries answer for one.

    Returns:
        [B, N, D]
    """
    if layout is None:
        # Rows in one piece, or a GPU takes none of its fused kernels; for a CPU it is no loss.
        added = None if bias is None else bias(slice(None)).to(query.dtype).contiguous()
        return merge_heads(attend(query, key, value, added, dropout))
    tells = bias is not None or layout.passed_over is not None
    sets = [(size, tells and place < layout.groups) for place, size in enumerate(layout.matching)]
    rows, start, mixed = (query, key, value), 0, []
    if layout.slots is not None:
        sets, start = sets[1:], layout.answer.stop
        mask = layout.visible
        if tells:
            mask = _told(slice(0, start), query, layout, bias).masked_fill(~mask, -torch.inf)
        q, k, v = (x[:, :, :start] for x in rows)
        mixed.append(attend(q, k, v, mask, dropout))
    for (size, biased), alike in groupby(sets):  # sets of one kind are folded into the batch
        count = len(list(alike))
        end = start + count * size
        q, k, v = (x[:, :, start:end].unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1) for x in rows)
        added = None
        if biased:
            parts = [_told(slice(first, first + size), query, layout, bias) for first in range(start, end, size)]
            added = torch.stack(parts, dim=1).flatten(0, 1)
        alone = attend(q, k, v, added, dropout)
        mixed.append(alone.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3))
        start = end
    return merge_heads(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2))


def _told(places: slice, query: Tensor, layout: QueryLayout, bias: Relation | None) -> Tensor:
    """[B, H or 1, N, N] what is added to the logits among these places, -inf for those that do not see one another."""
    numbers = query.new_zeros(()) if bias is None else bias(places).to(query.dtype)
    if layout.passed_over is None:
        return numbers
    hidden = layout.passed_over[:, None, places]
    return numbers.masked_fill(hidden[..., :, None] & hidden[..., None, :], -torch.inf)


class MultiHeadAttention(CastsOnce):
    """softmax(q k / sqrt(D / H)) v (Vaswani et al., 2017); q, k, v projections packed in one matrix [3 D, D]."""

    def __init__(self, *, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def queries(self, x: Tensor) -> Tensor:
        """[B, N, D] projected to queries [B, H, N, F]; `keys` and `values` likewise."""
        return self._projected(x, 0)

    def keys(self, x: Tensor) -> Tensor:
        return self._projected(x, 1)

    def values(self, x: Tensor) -> Tensor:
        return self._projected(x, 2)

    def _projected(self, x: Tensor, part: int) -> Tensor:
        weight, bias = self.cast("in_proj_weight", "in_proj_bias")
        return split_heads(linear(x, weight.chunk(3)[part], bias.chunk(3)[part]), self.heads)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both of the same [B, N, D], in one product instead of two."""
        weight, bias = self.cast("in_proj_weight", "in_proj_bias")
        rows = 2 * weight.shape[1]
        both = linear(x, weight[:rows], bias[:rows]).chunk(2, dim=-1)
        return split_heads(both[0], self.heads), split_heads(both[1], self.heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        layout: QueryLayout | None = None,
        bias: Relation | None = None,
    ) -> Tensor:
        """Query [B, N, D], key and value [B, L, D], padding mask [B, L] or None, to [B, N, D].

        `layout` and `bias` are for attention among the decoder's queries, which have no padding (see `self_attend`).
        """
        value = self.values(value)
        query, key = self._queries_and_keys(query) if query is key else (self.queries(query), self.keys(key))
        dropout = self.dropout if self.training else 0.0
        if layout is not None or bias is not None:
            return self.out_proj(self_attend(query, key, value, layout, dropout=dropout, bias=bias))
        mixed = attend(query, key, value, key_mask(mask), dropout)
        return self.out_proj(merge_heads(mixed))
