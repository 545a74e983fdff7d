"""The plain transformer encoder over one feature map."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from detrkit.attention.multihead import MultiHeadAttention
from detrkit.encoders.base import Encoder
from detrkit.encoders.layer import PostNormLayer
from detrkit.encoders.levels import only_level
from detrkit.layers import MLP, Activation, Count, Layers, Probability, xavier_matrices
from detrkit.position import CellPosition
from detrkit.recipe import register
from detrkit.structures import FeatureMap, Memory


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
    ):
        super().__init__()
        self.position = position
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
        self.projection_norm = nn.GroupNorm(math.gcd(32, width), width) if projection_norm else nn.Identity()

    def forward(self, features: list[FeatureMap]) -> Memory:
        (level,) = features
        projected = self.projection_norm(self.projection(level.values))
        position = self.position(projected, level.mask)
        mask = None if level.mask is None else level.mask.flatten(1)
        x = projected.flatten(2).transpose(1, 2)
        for index, layer in enumerate(self.layers):
            scaled = position
            if self.scales:
                scaled = position * self.scales[index % len(self.scales)](x)
            x = layer(x, scaled, mask)
        axes = self.position.axes(projected, level.mask)
        return Memory(x, position, (tuple(projected.shape[-2:]),), mask, level.extent, axes)
