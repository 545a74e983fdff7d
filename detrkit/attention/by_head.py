"""Attention of one head after another, its products by oneDNN, for a CPU on which PyTorch's fused kernel is slower.

That kernel multiplies by MKL, which has AVX2 code for an AMD processor, in bfloat16 too, and it wants values as wide as
keys, so that those of a sum of terms (72 channels of keys, 32 of values) are filled up with zeros. Here the weights of
one head and image are there at a time, [N, L]; the backward pass computes them again. All of it is float32, whatever
it is given.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detrkit import onednn

WIDE = 2  # keys that are so many times as wide as values gain on two threads as well


def gains(value: Tensor, *, queries: int, width: int) -> bool:
    """Whether `attend_by_head` is faster for values [B, H, L, F], so many queries, and keys of so many channels.

    Measured on one thread and on two. Among more the fused kernel divides the heads, this each product.
    """
    most = 2 if width >= WIDE * value.shape[-1] else 1
    # The first is for torch.compile, which is to meet no question about shapes.
    if torch.compiler.is_compiling() or torch.get_num_threads() > most:
        return False
    if value.device.type != "cpu" or value.dtype not in (torch.float32, torch.bfloat16):
        return False
    return onednn.gains_at(queries * value.shape[-2] * width)


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k / sqrt(E) + what is allowed) v, [B, H, N, F], by PyTorch's fused attention, or head by head.

    Args:
        query, key, value: [B, H, N, E], [B, H, L, E], [B, H, L, F].
        allowed: what broadcasts to [B, H, N, L]: True where a query sees a key, or numbers that are added to logits.
        dropout: on attention weights.
    """
    sees = allowed is None or allowed.dtype == torch.bool
    if not dropout and sees and gains(value, queries=query.shape[-2], width=query.shape[-1]):
        return attend_by_head(query, key, value, allowed, query.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(query, key, value, allowed, dropout)


def attend_by_head(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """softmax(q k scale) v where `allowed` is True, in float32 on a CPU; the result has the values' type."""
    with torch.autocast("cpu", enabled=False):
        mixed = _Attention.apply(query.float() * scale, key.float(), value.float(), allowed)
    return mixed.to(value.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        if allowed is not None:
            allowed = allowed[(None,) * (4 - allowed.dim())].expand(*query.shape[:2], -1, -1)
        out = value.new_empty(*query.shape[:-1], value.shape[-1])
        for at in _heads(query):
            out[at] = onednn.multiply(_weights(query, key, allowed, at), value[at].t())
        ctx.save_for_backward(query, key, value, allowed, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, allowed, out = ctx.saved_tensors
        grad = grad.contiguous()
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        means = (out * grad).sum(-1, keepdim=True)  # [B, H, N, 1]: each row of P dP, summed
        for at in _heads(query):
            weights = _weights(query, key, allowed, at)
            of_value[at] = onednn.multiply(grad[at].t(), weights.t()).t()
            of_logits = onednn.multiply(grad[at], value[at]).sub_(means[at]).mul_(weights)
            of_query[at] = onednn.multiply(of_logits, key[at].t())
            of_key[at] = onednn.multiply(query[at].t(), of_logits.t()).t()
        return of_query, of_key, of_value, None


def _heads(x: Tensor) -> product:
    """(b, h) of each image and head of x [B, H, ...]."""
    return product(range(x.shape[0]), range(x.shape[1]))


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None, at: tuple[int, int]) -> Tensor:
    """[N, L] of one image and head, 0 where a query does not see a key."""
    logits = onednn.multiply(query[at], key[at])
    if allowed is not None:
        logits.masked_fill_(~allowed[at], -torch.inf)
    return logits.softmax(-1)
