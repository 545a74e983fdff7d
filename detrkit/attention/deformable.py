"""Deformable attention: each query reads a few places around its reference on every level (Deformable DETR, section 4).

Plain PyTorch, so it runs wherever PyTorch does and can be exported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detrkit.attention.base import CrossAttention
from detrkit.attention.bilinear import read_bilinear
from detrkit.errors import UserError
from detrkit.layers import Count, Part, at_least_float32, constant, dtype_of_places, total
from detrkit.recipe import register
from detrkit.structures import Memory, QueryPosition, Reference


def sample_levels(value: Tensor, memory: Memory, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values at places between the cells: bilinear, with zeros outside the map.

    Args:
        value: [B, L, D], heads side by side.
        memory: whose levels the values lie on.
        locations: [B, N, H, levels, K, 2] (x, y), a cell's middle at (i + 0.5) / w of the padded map; at least
            float32, since places do not survive bfloat16.
        weights: [B, N, H, levels, K].

    Returns:
        [B, N, D]
    """
    batch, _, heads = locations.shape[:3]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B * H, N, levels, K, 2]
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # [B * H, 1, N, levels, K]
    mixed = []
    for level, (rows, shape) in enumerate(zip(memory.split(value), memory.shapes, strict=True)):
        maps = rows.transpose(1, 2).unflatten(1, (heads, -1)).flatten(0, 1).unflatten(-1, shape)
        sampled = read_bilinear(maps.to(grid.dtype), grid[:, :, level])  # [B * H, D / H, N, K]
        mixed.append((sampled * weights[..., level, :]).sum(-1))
    return total(mixed).unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2).to(value.dtype)


class DeformableAttention(Part):
    """Sampling around a reference; whoever uses it says what an offset of one means.

    Args:
        width: D.
        heads: H.
        levels: of the memory.
        points: K, places that a head reads on each level.

    Values of padded cells are zero and the weights do not know: what falls on padding is lost, as published.
    """

    own_start = True
    place_layers = ("sampling_offsets",)

    def __init__(self, *, width: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)  # head, level, point, (x, y)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.attention_weights, self.value, self.out):
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star(heads, points)[:, None].expand(-1, levels, -1, -1).flatten())

    def offsets(self, query: Tensor) -> Tensor:
        """The raw offsets [B, N, H, levels, K, 2] (x, y) of queries [B, N, D], at least in float32."""
        raw = at_least_float32(self.sampling_offsets(query))
        return raw.unflatten(-1, (self.heads, self.levels, self.points, 2))

    def weights(self, query: Tensor) -> Tensor:
        """How much queries [B, N, D] take of each place, [B, N, H, levels, K]; 1 in sum for a head."""
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        return weights.unflatten(-1, (self.levels, self.points))

    def forward(self, query: Tensor, locations: Tensor, memory: Memory) -> Tensor:
        """Queries [B, N, D] and the places that they read (see `sample_levels`) to their update [B, N, D]."""
        value = self.value(memory.tokens)
        if memory.mask is not None:
            value = value.masked_fill(memory.mask[..., None], 0.0)
        return self.out(sample_levels(value, memory, locations, self.weights(query)))


def star(heads: int, points: int) -> Tensor:
    """Offsets [H, K, 2] to start from: each head looks its own way, point k at k + 1 cells on the square around."""
    angle = torch.arange(heads) * (2 * math.pi / heads)
    ray = torch.stack((angle.cos(), angle.sin()), dim=-1)
    ray = ray / ray.abs().amax(-1, keepdim=True)
    return ray[:, None] * torch.arange(1, points + 1)[:, None]


def cells(memory: Memory) -> Tensor:
    """[levels, 1, 2] a cell as a share of each level's padded map: (1 / w, 1 / h), at least float32."""
    like = memory.position
    return constant([[1 / w, 1 / h] for h, w in memory.shapes], like, dtype_of_places(like))[:, None]


@register("cross_attention", "deformable")
class DeformableCrossAttention(CrossAttention):
    """Queries read a few places around their reference, on any number of levels (Deformable DETR, section 4.1).

    out = W_o sum of a_lk W_v m_l(r + d_lk) over levels l and K places k, head by head: linear layers of the query
    (content and position embeddings) give the weights a, 1 in sum, and the offsets d; m_l(.) is bilinear, 0 outside
    the map.

    A reference without sides is sampled at offsets in cells. Around a reference with sides an offset of K reaches the
    side that it points to, left or right and above or below on their own scales; for a box that is the published half
    width and height over K, for a salient point the same idea with its unequal sides.

    Args:
        width: D.
        heads: H.
        levels: of the memory.
        points: K, places that a head reads on each level.
    """

    def __init__(self, *, width: int, heads: int, levels: int, points: Count = 4):
        super().__init__()
        self.attention = DeformableAttention(width=width, heads=heads, levels=levels, points=points)

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D].

        Raises:
            UserError: the memory has another number of levels.
        """
        query = sum(position.embeddings.values(), content)
        return self.attention(query, self._locations(query, reference, memory), memory)

    def samples(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """The places that `forward` reads on the same arguments (see `sample_levels`), and the weights of each."""
        query = sum(position.embeddings.values(), content)
        return self._locations(query, reference, memory), self.attention.weights(query)

    def _locations(self, query: Tensor, reference: Reference, memory: Memory) -> Tensor:
        if len(memory.shapes) != self.attention.levels:  # the weights of those that it lacks would be lost
            raise UserError(
                f"deformable attention was built with levels = {self.attention.levels}, and the memory has "
                f"{len(memory.shapes)}"
            )
        offsets = self.attention.offsets(query)
        ratios = memory.valid_ratios[:, None, None, :, None]  # [B, 1, 1, levels, 1, 2]
        if reference.sides is None:
            step = cells(memory)
        else:
            low, high = reference.sides[:, :, None, None, None].chunk(2, dim=-1)
            step = torch.where(offsets > 0, high, low) * ratios / self.attention.points
        return reference.point[:, :, None, None, None] * ratios + offsets * step
