"""Anchor DETR's encoder: every cell looks along rows and columns apart."""

from __future__ import annotations

import math

from torch import Tensor, nn

from detrkit.attention.row_column import RowColumnAttention
from detrkit.encoders.base import Encoder
from detrkit.encoders.layer import PostNormLayer
from detrkit.encoders.levels import normed, only_level
from detrkit.errors import UserError
from detrkit.layers import Activation, Count, GroupNorm, Layers, Probability, zero_bias
from detrkit.position import CellPosition
from detrkit.recipe import register
from detrkit.structures import AxisCodes, Extent, FeatureMap, Memory


class RowColumnEncoderLayer(PostNormLayer):
    """Every cell looks along rows and columns apart (RCDA)."""

    def forward(self, x: Tensor, codes: AxisCodes, mask: Tensor | None) -> Tensor:
        cells = x.unflatten(1, (codes.y.shape[1], codes.x.shape[1]))
        along_x = (cells + codes.x[:, None]).flatten(1, 2)
        along_y = (cells + codes.y[:, :, None]).flatten(1, 2)
        return self.add(x, self.self_attention(along_x, along_y, x, codes, mask))


@register("encoder", "row_column")
class RowColumnEncoder(Encoder):
    """Project the one feature map, norm it, and let its cells look along rows and columns (Anchor DETR, section 3.4).

    All layers start alike, as published.

    Needs codes of rows and columns apart (`position.type = "axes"`), and one level in `backbone.levels`.

    Args:
        channels: of the backbone's one level.
        width: D.
        heads: H.
        position: gives the codes of rows and columns.
        layers: encoder layers; 0 leaves the projected map as it is.
        feedforward: hidden width.
        activation: of the feed-forward network.
        dropout: on attention weights, sub-layer outputs and hidden units.
        extent: what the norm and the means along rows and columns are over: the "padded" map (published: an image's
            result depends on the padding of its batch), or the "image".
    """

    levels = 1

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        width: int,
        heads: int,
        position: CellPosition,
        layers: Layers = 6,
        feedforward: Count = 1024,
        activation: Activation = "relu",
        dropout: Probability = 0.0,
        extent: Extent = "padded",
    ):
        super().__init__()
        self.position, self.extent = position, extent
        self.projection = nn.Conv2d(only_level(channels, "row_column"), width, kernel_size=1)
        nn.init.xavier_uniform_(self.projection.weight)
        zero_bias(self.projection)
        self.projection_norm = GroupNorm(math.gcd(32, width), width)
        self.layers = nn.ModuleList(
            RowColumnEncoderLayer(
                attention=RowColumnAttention(width=width, heads=heads, dropout=dropout, extent=extent),
                width=width,
                feedforward=feedforward,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        for layer in self.layers[1:]:
            layer.load_state_dict(self.layers[0].state_dict())

    def forward(self, features: list[FeatureMap]) -> Memory:
        (level,) = features
        left_out = level.mask if self.extent == "image" else None
        projected = normed(self.projection(level.values), left_out, self.projection_norm)
        codes = self.position.axes(projected, level.mask)
        if codes is None:
            raise UserError('encoder "row_column" needs codes of rows and columns apart: set position.type = "axes"')
        mask = None if level.mask is None else level.mask.flatten(1)
        x = projected.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, codes, mask)
        return Memory(x, codes.cells(), ((projected.shape[-2], projected.shape[-1]),), mask, level.extent, codes)
