"""Plain multi-head attention with packed input projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H * F] to [B, H, N, F]; heads are contiguous runs of channels."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, F] to [B, N, H * F]."""
    return x.transpose(1, 2).flatten(2)


def key_mask(mask: Tensor | None) -> Tensor | None:
    """A padding mask [B, L], True where padded, as fused attention wants it: [B, 1, 1, L], True where allowed."""
    return None if mask is None else ~mask[:, None, None, :]


class MultiHeadAttention(nn.Module):
    """softmax(q k / sqrt(D / H)) v (Vaswani et al., 2017); q, k, v projections packed in one matrix [3 D, D]."""

    def __init__(self, *, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Query [B, N, D], key and value [B, L, D] projected and split: [B, H, N, F], twice [B, H, L, F]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        if query is key:  # one product instead of two
            both = F.linear(query, torch.cat(weights[:2]), torch.cat(biases[:2]))
            query, key = both.chunk(2, dim=-1)
        else:
            query, key = F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1])
        value = F.linear(value, weights[2], biases[2])
        return [split_heads(x, self.heads) for x in (query, key, value)]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Query [B, N, D], key and value [B, L, D], padding mask [B, L] or None, to [B, N, D]."""
        query, key, value = self.project(query, key, value)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, key_mask(mask), dropout)
        return self.out_proj(merge_heads(mixed))
