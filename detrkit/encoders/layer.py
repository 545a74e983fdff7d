"""What every encoder layer is around its attention."""

from __future__ import annotations

from torch import Tensor, nn

from detrkit.dropout import Dropout
from detrkit.layers import Activation, FeedForward


class PostNormLayer(nn.Module):
    """Self-attention and feed-forward, each added and normed after; a layer of its own kind says what attention gives.

    Args:
        attention: the self-attention.
        width: D.
        feedforward: hidden width.
        activation: of the feed-forward network.
        dropout: on sub-layer outputs and hidden units.
    """

    def __init__(self, *, attention: nn.Module, width: int, feedforward: int, activation: Activation, dropout: float):
        super().__init__()
        self.self_attention = attention
        self.norm1 = nn.LayerNorm(width)
        self.feedforward = FeedForward(width=width, hidden=feedforward, activation=activation, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """Tokens [B, L, D] with the attention's update [B, L, D], then through the feed-forward network."""
        x = self.norm1(x + self.dropout(update))
        return self.norm2(x + self.dropout(self.feedforward(x)))
