"""Feature maps of several levels as one row of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from detrkit.errors import UserError
from detrkit.layers import GroupNorm, masked_group_norm, shrink_mask, zero_bias
from detrkit.position import CellPosition
from detrkit.structures import Extent, FeatureMap, Memory


class FeatureLevels(nn.Module):
    """Each level projected to D channels and normed, coarser ones added, all in one row (Deformable DETR, section 4.1).

    Args:
        channels: of each level of the backbone, fine to coarse.
        width: D.
        position: gives the codes of a level's cells.
        extra: coarser levels, each of half the size, by convolutions of stride 2: the first from the backbone's last
            map as it is, the next from the level before.
        vectors: add a learned vector of its level to the code of each cell.
        extent: what norms and convolutions see: the "padded" map, or the "image" alone.
        bias: whether convolutions have one, before their norms.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        width: int,
        position: CellPosition,
        extra: int,
        vectors: bool,
        extent: Extent = "padded",
        bias: bool = True,
    ):
        super().__init__()
        self.position, self.extent = position, extent
        coarser = [channels[-1], *[width] * extra][:extra]
        self.projections = nn.ModuleList(
            [
                *(projection(c, width, kernel_size=1, stride=1, bias=bias) for c in channels),
                *(projection(c, width, kernel_size=3, stride=2, bias=bias) for c in coarser),
            ]
        )
        self.vectors = nn.Parameter(torch.randn(len(self.projections), width)) if vectors else None

    def forward(self, features: list[FeatureMap]) -> Memory:
        """The tokens before any attention."""
        last = features[-1]
        masks = [f.mask for f in features]
        maps = [
            self._projected(layer, f.values, f.mask, f.mask)
            for layer, f in zip(self.projections, features, strict=False)
        ]
        for index, layer in enumerate(self.projections[len(features) :]):
            read = maps[-1] if index else last.values
            masks.append(shrink_mask(last.pixel_mask, halved(read.shape[-2:])))
            maps.append(self._projected(layer, read, masks[-2], masks[-1]))
        return as_memory(maps, masks, self.position, last.extent, self.vectors)

    def _projected(self, layer: nn.Module, values: Tensor, mask: Tensor | None, made: Tensor | None) -> Tensor:
        """A map with padding `mask` [B, h, w] as one of D channels with padding `made`."""
        if self.extent == "padded" or mask is None or made is None:
            return layer(values)
        convolution, norm = cast(nn.Sequential, layer)
        return normed(convolution(values.masked_fill(mask[:, None], 0)), made, norm)


def normed(values: Tensor, mask: Tensor | None, norm: nn.Module) -> Tensor:
    """A map [B, D, h, w] after its norm, with padding `mask` [B, h, w] left out of a GroupNorm's statistics."""
    if mask is None or not isinstance(norm, nn.GroupNorm):
        return norm(values)
    return masked_group_norm(values, mask[:, None], norm)


def halved(shape: Sequence[int]) -> tuple[int, int]:
    """(h, w) of a map after a convolution of stride 2."""
    height, width = shape
    return (height + 1) // 2, (width + 1) // 2


def only_level(channels: tuple[int, ...], encoder: str) -> int:
    """The channels of the backbone's one level, for an encoder that reads no more.

    Raises:
        UserError: there are several.
    """
    if len(channels) > 1:
        raise UserError(
            f'encoder "{encoder}" reads one feature map, but backbone.levels names {len(channels)}; name one, such as '
            '[-1], or take encoder.type = "deformable" or "hybrid", which read any number'
        )
    return channels[0]


def projection(inputs: int, outputs: int, *, kernel_size: int, stride: int, bias: bool = True) -> nn.Sequential:
    """A convolution and a GroupNorm of 32 groups, or of as many as divide both 32 and the channels."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)
    nn.init.xavier_uniform_(convolution.weight)
    zero_bias(convolution)
    return nn.Sequential(convolution, GroupNorm(math.gcd(32, outputs), outputs))


def as_memory(
    maps: list[Tensor],
    masks: list[Tensor | None],
    position: CellPosition,
    extent: Tensor | None,
    vectors: Tensor | None = None,
) -> Memory:
    """Maps [B, D, h, w] of all levels, fine to coarse, in one row of tokens.

    Args:
        maps: one a level.
        masks: their padding [B, h, w], or None for each.
        position: gives the codes of their cells.
        extent: the images' sizes in cells (see `FeatureMap`), for a memory of one level.
        vectors: [levels, D] that are added to the codes of a level's cells.
    """
    codes = [position(m, mask) for m, mask in zip(maps, masks, strict=True)]
    if vectors is not None:
        codes = [code + vector for code, vector in zip(codes, vectors, strict=True)]
    alone = len(maps) == 1
    return Memory(
        tokens=torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1),
        position=torch.cat(codes, dim=1),
        mask=_row(masks),
        shapes=tuple((m.shape[-2], m.shape[-1]) for m in maps),
        extent=extent if alone else None,
        axes=position.axes(maps[0], masks[0]) if alone else None,
    )


def _row(masks: list[Tensor | None]) -> Tensor | None:
    """The masks of all levels in one [B, L]; None where there are none."""
    rows = [mask.flatten(1) for mask in masks if mask is not None]
    return torch.cat(rows, dim=1) if rows else None
