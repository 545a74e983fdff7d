"""The plain transformer encoder over one feature map."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from detrkit.attention.multihead import MultiHeadAttention
from detrkit.encoders.base import Encoder
from detrkit.encoders.layer import PostNormLayer
from detrkit.encoders.levels import normed, only_level
from detrkit.errors import UserError
from detrkit.layers import MLP, Activation, Count, GroupNorm, Layers, Probability, xavier_matrices
from detrkit.position import CellPosition
from detrkit.recipe import register
from detrkit.structures import Extent, FeatureMap, Memory


class EncoderLayer(PostNormLayer):
    """Every cell attends to every other."""

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        placed = x + position
        return self.add(x, self.self_attention(placed, placed, x, mask))


@register("encoder", "transformer")
class TransformerEncoder(Encoder):
    """Project the one feature map to D channels and let its cells attend to one another (DETR, section A.3).

    q = k = token + code of its place, v = token; each sub-layer is norm(x + sub-layer(x)).

    Needs one level in `backbone.levels`.

    Args:
        channels: of the backbone's one level.
        width: D.
        heads: H.
        position: gives the cells' codes.
        layers: encoder layers; 0 leaves the projected map as it is.
        feedforward: hidden width.
        activation: of the feed-forward network.
        dropout: on attention weights, sub-layer outputs and hidden units.
        projection_norm: a GroupNorm of 32 groups, or of as many as divide both 32 and D, after the projection.
        position_scale: multiply the cells' codes by an MLP of the content: "shared" by all layers (DAB-DETR),
            one "per_layer" (SAP-DETR), or "none" (DETR).
        extent: what that GroupNorm is over: the "padded" map (published: an image's result depends on the padding of
            its batch), or the "image".
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
        feedforward: Count = 2048,
        activation: Activation = "relu",
        dropout: Probability = 0.0,
        projection_norm: bool = False,
        position_scale: Literal["none", "shared", "per_layer"] = "none",
        extent: Extent = "padded",
    ):
        super().__init__()
        self.position, self.extent = position, extent
        if extent == "image" and not projection_norm:
            raise UserError('encoder.extent = "image" is of the norm; it needs encoder.projection_norm = true')
        self.layers = nn.ModuleList(
            EncoderLayer(
                attention=MultiHeadAttention(width=width, heads=heads, dropout=dropout),
                width=width,
                feedforward=feedforward,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        scales = {"none": 0, "shared": min(layers, 1), "per_layer": layers}[position_scale]
        self.scales = nn.ModuleList(MLP(width, width, width, 2) for _ in range(scales))
        xavier_matrices(self)
        self.projection = nn.Conv2d(only_level(channels, "transformer"), width, kernel_size=1)
        self.projection_norm = GroupNorm(math.gcd(32, width), width) if projection_norm else nn.Identity()

    def forward(self, features: list[FeatureMap]) -> Memory:
        (level,) = features
        left_out = level.mask if self.extent == "image" else None
        projected = normed(self.projection(level.values), left_out, self.projection_norm)
        position = self.position(projected, level.mask)
        mask = None if level.mask is None else level.mask.flatten(1)
        x = projected.flatten(2).transpose(1, 2)
        for index, layer in enumerate(self.layers):
            scaled = position
            if self.scales:
                scaled = position * self.scales[index % len(self.scales)](x)
            x = layer(x, scaled, mask)
        axes = self.position.axes(projected, level.mask)
        return Memory(x, position, ((projected.shape[-2], projected.shape[-1]),), mask, level.extent, axes)
