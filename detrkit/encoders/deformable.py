"""The deformable encoder: every cell reads a few places around itself, on every level."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detrkit.attention.deformable import DeformableAttention, cells
from detrkit.encoders.base import Encoder
from detrkit.encoders.layer import PostNormLayer
from detrkit.encoders.levels import FeatureLevels
from detrkit.errors import UserError
from detrkit.layers import MLP, Activation, Count, Depth, Layers, Probability, xavier_matrices, zero_bias
from detrkit.position import CellPosition
from detrkit.recipe import register
from detrkit.structures import Extent, FeatureMap, Memory


class DeformableEncoderLayer(PostNormLayer):
    """Every cell reads a few places around itself."""

    self_attention: DeformableAttention

    def forward(self, memory: Memory, places: Tensor) -> Memory:
        """`places` [B, L, 1, levels, 1, 2]: where on each level's padded map every cell lies."""
        query = memory.tokens + memory.position
        locations = places + self.self_attention.offsets(query) * cells(memory)
        return replace(memory, tokens=self.add(memory.tokens, self.self_attention(query, locations, memory)))


class MemoryFusion(nn.Module):
    """What went into an encoder and what each of its layers made of it, as one memory (Stable-DINO, memory fusion).

    A linear layer over all of them, beside one another, and a norm. Relation DETR has two, with a ReLU between.

    Args:
        width: D.
        layers: E, encoder layers.
        depth: linear layers.
    """

    def __init__(self, *, width: int, layers: int, depth: int):
        super().__init__()
        inputs = (layers + 1) * width
        self.project: nn.Module
        if depth == 1:
            self.project = nn.Linear(inputs, width)
            zero_bias(self.project)
        else:
            self.project = MLP(inputs, width, width, depth)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """E + 1 times [B, L, D], in their order, to [B, L, D]."""
        return self.norm(self.project(torch.cat(tokens, dim=-1)))


@register("encoder", "deformable")
class DeformableEncoder(Encoder):
    """Project all levels of the backbone and let their cells read one another (Deformable DETR, section 4.1).

    Padded cells are queries too, and are read as zeros.

    Args:
        channels: of each level of the backbone; all of them are used.
        width: D.
        heads: H.
        position: gives the cells' codes.
        layers: encoder layers; 0 leaves the projected maps as they are, and level vectors without training where
            cross-attention reads no cells' codes, as deformable attention.
        feedforward: hidden width.
        activation: of the feed-forward network.
        dropout: on sub-layer outputs and hidden units; deformable attention has none inside.
        points: places that a head reads on each level.
        extra_levels: coarser levels beside the backbone's, each of half the size; DINO and Deformable DETR with four
            levels take three and one.
        level_vectors: whether cells' codes have a learned vector for their level: "several" if there are several
            levels (DINO), or "always" (Deformable DETR).
        extent: what norms and convolutions of the levels see: the "padded" maps (published: an image's result depends
            on the padding of its batch), or the "image" alone.
        memory_fusion: the memory is made of the projected maps and of every layer's output (`MemoryFusion`), not of the
            last one's alone.
        fusion_depth: linear layers of that, with ReLU between: 1 in Stable-DINO, 2 in Relation DETR.
        projection_bias: whether the convolutions before the levels' norms have a bias, as in the codes that follow
            Deformable DETR's; those of mmdetection and of Relation DETR have none.
    """

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
        points: Count = 4,
        extra_levels: Annotated[int, Field(ge=0, le=8)] = 0,
        level_vectors: Literal["several", "always"] = "several",
        extent: Extent = "padded",
        memory_fusion: bool = False,
        fusion_depth: Depth = 1,
        projection_bias: bool = True,
    ):
        super().__init__()
        if fusion_depth > 1 and not memory_fusion:
            raise UserError(f"encoder.fusion_depth = {fusion_depth} needs encoder.memory_fusion = true")
        self.levels = len(channels) + extra_levels
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                attention=DeformableAttention(width=width, heads=heads, levels=self.levels, points=points),
                width=width,
                feedforward=feedforward,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        self.fusion = MemoryFusion(width=width, layers=layers, depth=fusion_depth) if memory_fusion else None
        xavier_matrices(self)
        self.inputs = FeatureLevels(
            channels=channels,
            width=width,
            position=position,
            extra=extra_levels,
            vectors=level_vectors == "always" or self.levels > 1,
            extent=extent,
            bias=projection_bias,
        )

    def forward(self, features: list[FeatureMap]) -> Memory:
        memory = self.inputs(features)
        places = memory.centers()[:, :, None, None, None] * memory.valid_ratios[:, None, None, :, None]
        every = [memory.tokens]
        for layer in self.layers:
            memory = layer(memory, places)
            every.append(memory.tokens)
        return memory if self.fusion is None else replace(memory, tokens=self.fusion(every))
