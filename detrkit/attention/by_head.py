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
from detrkit.attention.written_out import attend_written_out, draws_cheaply
from detrkit.dropout import draw, keep, kept_share

WIDE = 2  # keys that are so many times as wide as values gain on two threads as well


def gains(value: Tensor, *, queries: int, width: int, dropout: float = 0.0) -> bool:
    """Whether `attend_by_head` is faster for values [B, H, L, F], so many queries, and keys of so many channels.

    Measured on one thread and on two. Among more the fused kernel divides the heads, this each product. With dropout
    PyTorch has no fused kernel for a CPU.
    """
    most = 2 if dropout or width >= WIDE * value.shape[-1] else 1
    # The first is for torch.compile, which is to meet no question about shapes.
    if torch.compiler.is_compiling() or torch.get_num_threads() > most:
        return False
    if value.device.type != "cpu" or value.dtype not in (torch.float32, torch.bfloat16):
        return False
    return onednn.gains_at(queries * value.shape[-2] * width)


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k / sqrt(E) + what is allowed) v, [B, H, N, F], by PyTorch's fused attention or what is faster.

    Args:
        query, key, value: [B, H, N, E], [B, H, L, E], [B, H, L, F].
        allowed: what broadcasts to [B, H, N, L]: True where a query sees a key, or numbers that are added to logits.
        dropout: on attention weights.
    """
    sees = allowed is None or allowed.dtype == torch.bool
    if sees and gains(value, queries=query.shape[-2], width=query.shape[-1], dropout=dropout):
        return attend_by_head(query, key, value, allowed, query.shape[-1] ** -0.5, dropout)
    if draws_cheaply(value, dropout):
        return attend_written_out(query, key, value, allowed, query.shape[-1] ** -0.5, dropout)
    return F.scaled_dot_product_attention(query, key, value, allowed, dropout)


def attend_by_head(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(q k scale) v where `allowed` is True, in float32 on a CPU; the result has the values' type."""
    drawn = draw((*query.shape[:-1], key.shape[-2])) if dropout else None
    with torch.autocast("cpu", enabled=False):
        scaled = value.float() / kept_share(dropout) if dropout else value.float()
        mixed = _Attention.apply(query.float() * scale, key.float(), scaled, allowed, drawn, dropout)
    return mixed.to(value.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None,
        drawn: Tensor | None,
        dropout: float,
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        if allowed is not None:
            allowed = allowed[(None,) * (4 - allowed.dim())].expand(*query.shape[:2], -1, -1)
        out = value.new_empty(*query.shape[:-1], value.shape[-1])
        for at in _heads(query):
            out[at] = onednn.multiply(_left(_weights(query, key, allowed, at), drawn, dropout, at), value[at].t())
        ctx.save_for_backward(query, key, value, allowed, drawn, out)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, allowed, drawn, out = ctx.saved_tensors
        grad = grad.contiguous()
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        means = (out * grad).sum(-1, keepdim=True)  # [B, H, N, 1]: each row of P dP, summed
        for at in _heads(query):
            weights = _weights(query, key, allowed, at)
            of_value[at] = onednn.multiply(grad[at].t(), _left(weights, drawn, ctx.dropout, at).t()).t()
            of_mixed = _left(onednn.multiply(grad[at], value[at]), drawn, ctx.dropout, at)
            of_logits = of_mixed.sub_(means[at]).mul_(weights)
            of_query[at] = onednn.multiply(of_logits, key[at].t())
            of_key[at] = onednn.multiply(query[at].t(), of_logits.t()).t()
        return of_query, of_key, of_value, None, None, None


def _heads(x: Tensor) -> product:
    """(b, h) of each image and head of x [B, H, ...]."""
    return product(range(x.shape[0]), range(x.shape[1]))


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None, at: tuple[int, int]) -> Tensor:
    """[N, L] of one image and head, 0 where a query does not see a key."""
    logits = onednn.multiply(query[at], key[at])
    if allowed is not None:
        logits.masked_fill_(~allowed[at], -torch.inf)
    return logits.softmax(-1)


def _left(x: Tensor, drawn: Tensor | None, dropout: float, at: tuple[int, int]) -> Tensor:
    """x [N, L] of one image and head, 0 where dropout leaves it out."""
    return x if drawn is None else x * keep(drawn[at], dropout, x.dtype)
