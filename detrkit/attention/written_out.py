"""Attention with dropout for a CPU, where PyTorch has no fused kernel for it and draws 64 bits for each weight."""

from __future__ import annotations

import torch
from torch import Tensor

from detrkit.dropout import draw, keep, kept_share
from detrkit.onednn import is_watched


def draws_cheaply(value: Tensor, dropout: float) -> bool:
    """Whether `attend_written_out` can be taken and is faster than PyTorch's own way, for values [B, H, L, F]."""
    # torch.compile draws in its own kernels.
    if not 0 < dropout < 1 or torch.compiler.is_compiling():
        return False
    return value.device.type == "cpu" and not is_watched()


def attend_written_out(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """softmax(q k scale + what is allowed) with dropout in (0, 1), times v: [B, H, N, F].

    Args:
        query, key, value: [B, H, N, E], [B, H, L, E], [B, H, L, F].
        allowed: what broadcasts to [B, H, N, L]: True where a query sees a key, or numbers that are added to logits.
    """
    drawn = draw((*query.shape[:-1], key.shape[-2]))
    logits = query * scale @ key.transpose(-1, -2)
    if allowed is not None and allowed.dtype == torch.bool:
        logits = logits.masked_fill(~allowed, -torch.inf)
    elif allowed is not None:
        logits = logits + allowed
    weights = logits.softmax(-1)
    return weights * keep(drawn, dropout, weights.dtype) @ (value / kept_share(dropout))
