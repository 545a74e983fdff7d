"""One layer of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.attention.base import CrossAttention, SelfAttention
from detrkit.dropout import Dropout
from detrkit.errors import UserError, require_given
from detrkit.layers import FeedForward
from detrkit.structures import Memory, QueryLayout, QueryPosition, Reference


class ManyFirst(nn.Module):
    """What a decoder layer knows before its queries have seen one another, for one-to-many predictions (MS-DETR)."""

    def __init__(self, *, feedforward: FeedForward, width: int, dropout: float):
        super().__init__()
        self.feedforward, self.norm, self.dropout = feedforward, nn.LayerNorm(width), Dropout(dropout)

    def forward(self, content: Tensor) -> Tensor:
        """Content [B, N, D] after cross-attention to what heads read."""
        return self.norm(content + self.dropout(self.feedforward(content)))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each added and normed after (post-norm).

    With `many_first`, self-attention comes after cross-attention.
    """

    def __init__(
        self,
        *,
        self_attention: SelfAttention,
        cross_attention: CrossAttention,
        feedforward: FeedForward,
        width: int,
        dropout: float,
        many_first: ManyFirst | None = None,
    ):
        super().__init__()
        self.self_attention, self.norm1 = self_attention, nn.LayerNorm(width)
        self.cross_attention, self.norm2 = cross_attention, nn.LayerNorm(width)
        self.feedforward, self.norm3 = feedforward, nn.LayerNorm(width)
        self.many_first = many_first
        self.dropout = Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        position: QueryPosition,
        reference: Reference,
        memory: Memory,
        layout: QueryLayout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Content [B, N, D] to content [B, N, D], and in training to what `many_first` makes of it."""
        many = None
        if self.many_first is None:
            content = self._among(content, position, layout)
        update = self.cross_attention(content, position, reference, memory)
        _check(update, content, "cross-attention")
        content = self.norm2(content + self.dropout(update))
        if self.many_first is not None:
            many = self.many_first(content) if self.training else None
            content = self._among(content, position, layout)
        return self.norm3(content + self.dropout(self.feedforward(content))), many

    def _among(self, content: Tensor, position: QueryPosition, layout: QueryLayout | None) -> Tensor:
        update = self.self_attention(content, position, layout)
        _check(update, content, "self-attention")
        return self.norm1(content + self.dropout(update))


def _check(update: Tensor, content: Tensor, giver: str) -> None:
    """Raise UserError unless an update has the content's shape: another might be spread over all queries."""
    if torch.compiler.is_compiling():
        return
    require_given(update, Tensor, giver)
    if update.shape != content.shape:
        raise UserError(f"{giver} gives {list(update.shape)}, should be [B, N, D] = {list(content.shape)}")
