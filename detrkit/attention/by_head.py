"""Attention of one head after another, its products by oneDNN, for a CPU on which PyTorch's fused kernel is slower.

That kernel multiplies by MKL, which has AVX2 code for an AMD processor, and it wants values as wide as keys, so that
those of a sum of terms (72 channels of keys, 32 of values) are filled up with zeros. Here the logits of one head and
image are there at a time, [N, L]; the backward pass computes them again from their logarithmic sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detrkit import onednn

MOST_THREADS = 2  # that this was measured with; among more the fused kernel divides heads, this each product


def gains(queries: Sequence[Tensor], keys: Sequence[Tensor], value: Tensor) -> bool:
    """Whether `attend` is faster for queries [B, H, N, F_i], keys [B, H, L, F_i] and values [B, H, L, F]."""
    # The first is for torch.compile, which is to meet no question about shapes.
    if torch.compiler.is_compiling() or torch.get_num_threads() > MOST_THREADS:
        return False
    width = sum(key.shape[-1] for key in keys)
    if width < 2 * value.shape[-1]:
        return False
    work = queries[0].shape[-2] * value.shape[-2] * width
    return onednn.gains(*queries, *keys, value, work=work)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k) v, [B, H, N, F], in float32 on a CPU.

    Args:
        query, key: [B, H, N, E] and [B, H, L, E], scaled.
        value: [B, H, L, F].
        mask: [B, L], True where padded, or None.
    """
    return _Attention.apply(query, key, value, mask)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out = value.new_empty(*query.shape[:-1], value.shape[-1])
        sums = value.new_empty(*query.shape[:-1], 1)
        for at in _heads(query):
            weights = _logits(query, key, mask, at)
            top = weights.amax(-1, keepdim=True)
            weights.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True)
            torch.div(onednn.multiply(weights, value[at].t()), total, out=out[at])
            torch.add(top, total.log_(), out=sums[at])
        ctx.save_for_backward(query, key, value, mask, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mask, out, sums = ctx.saved_tensors
        grad = grad.contiguous()
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        means = (out * grad).sum(-1, keepdim=True)  # [B, H, N, 1]: each row of P dP, summed
        for at in _heads(query):
            weights = _logits(query, key, mask, at).sub_(sums[at]).exp_()
            of_value[at] = onednn.multiply(grad[at].t(), weights.t()).t()
            of_logits = onednn.multiply(grad[at], value[at]).sub_(means[at]).mul_(weights)
            of_query[at] = onednn.multiply(of_logits, key[at].t())
            of_key[at] = onednn.multiply(query[at].t(), of_logits.t()).t()
        return of_query, of_key, of_value, None


def _heads(x: Tensor) -> product:
    """(b, h) of each image and head of x [B, H, ...]."""
    return product(range(x.shape[0]), range(x.shape[1]))


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, at: tuple[int, int]) -> Tensor:
    """[N, L] of one image and head, minus infinity where padded."""
    logits = onednn.multiply(query[at], key[at])
    return logits if mask is None else logits.masked_fill_(mask[at[0]], -torch.inf)
