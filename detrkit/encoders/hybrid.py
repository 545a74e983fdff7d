"""RT-DETR's hybrid encoder: attention on the coarsest level alone, and fusion of all levels by convolutions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from detrkit.attention.multihead import MultiHeadAttention
from detrkit.encoders.base import Encoder
from detrkit.encoders.fusion import ConvNorm, CrossScaleFusion, RepBlock
from detrkit.encoders.levels import as_memory
from detrkit.encoders.transformer import EncoderLayer
from detrkit.errors import UserError
from detrkit.layers import Activation, Count, Layers, Probability
from detrkit.one_pass import all_in_one_pass
from detrkit.position import CellPosition
from detrkit.recipe import register
from detrkit.structures import FeatureMap, Memory


@register("encoder", "hybrid")
class HybridEncoder(Encoder):
    """Project all levels, let the cells of the coarsest attend to one another, fuse levels (RT-DETR, section 4.2).

    Each level is projected by a 1 x 1 convolution and a batch norm, before and after. Norms learn: statistics are each
    process's own. Padded cells are keys to nobody; convolutions read them as they are, since the official code knows of
    no padding.

    Needs `backbone.levels` of which each has half the size of the one before.

    Args:
        channels: of each level of the backbone; all of them are used.
        width: D.
        heads: H.
        position: gives the cells' codes.
        layers: encoder layers on the coarsest level; 0 for none.
        feedforward: hidden width.
        activation: of the feed-forward network; convolutions have SiLU.
        dropout: on attention weights, sub-layer outputs and hidden units.
        blocks: RepVGG blocks of each fusion.
        expansion: channels inside a fusion, in D: 1 with ResNet-50, 0.5 with ResNet-18.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        width: int,
        heads: int,
        position: CellPosition,
        layers: Layers = 1,
        feedforward: Count = 1024,
        activation: Activation = "gelu",
        dropout: Probability = 0.0,
        blocks: Count = 3,
        expansion: Annotated[float, Field(gt=0, le=4)] = 1.0,
    ):
        super().__init__()
        if int(width * expansion) < 1:
            raise UserError(
                f"encoder.expansion = {expansion:g} of detector.width = {width} leaves fusions without a channel; "
                "their product is at least 1"
            )
        self.levels, self.position = len(channels), position
        self.inputs = nn.ModuleList(ConvNorm(c, width, 1, activated=False) for c in channels)
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
        self.fusion = CrossScaleFusion(width=width, levels=self.levels, blocks=blocks, expansion=expansion)
        self.outputs = nn.ModuleList(ConvNorm(width, width, 1, activated=False) for _ in channels)

    def forward(self, features: list[FeatureMap]) -> Memory:
        *finer, last = (project(f.values) for project, f in zip(self.inputs, features, strict=True))
        fused = self.fusion([*finer, self._attended(last, features[-1].mask)])
        maps = [project(m) for project, m in zip(self.outputs, fused, strict=True)]
        return as_memory(maps, [f.mask for f in features], self.position, features[-1].extent)

    def prepare_for_detection(self) -> None:
        for module in self.modules():
            if isinstance(module, ConvNorm | RepBlock):
                module.fold()
        all_in_one_pass(self.inputs)
        all_in_one_pass(self.outputs)
        self.fusion.prepare_for_detection()

    def _attended(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """The map [B, D, h, w] after the encoder layers."""
        position = self.position(values, mask)
        padded = None if mask is None else mask.flatten(1)
        x = values.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, position, padded)
        return x.transpose(1, 2).unflatten(2, values.shape[-2:])
