"""What the image becomes: the backbone's feature maps, and the encoder's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from detrkit.errors import UserError
from detrkit.layers import constant, dtype_of_places

Extent = Literal["padded", "image"]
"""What a place in [0, 1] is a share of, when it becomes a cell: the batch's padded map, or the image's part of it."""


def require_bool(mask: Tensor | None, what: str) -> None:
    """Raise UserError if a mask is not bool: other codes give ones for what is no padding."""
    if mask is not None and mask.dtype != torch.bool:
        raise UserError(
            f"{what} is of {mask.dtype}; a mask is bool, True where padded (transformers' pixel_mask is 1 where it is "
            "not: pass pixel_mask == 0)"
        )


def require_map_mask(mask: Tensor | None, values: Tensor) -> None:
    """Raise UserError if a mask is not bool, or not of the cells of a map [B, C, h, w], whose codes would be wrong."""
    require_bool(mask, "the mask of a map")
    if mask is None or torch.compiler.is_compiling():  # there, heights and widths may be free
        return
    if values.dim() != 4 or mask.shape != (len(values), *values.shape[-2:]):
        raise UserError(
            f"the mask of a map is {list(mask.shape)}, and the map is {list(values.shape)}; they are [B, h, w] and "
            "[B, C, h, w]: a mask of pixels is brought to the map's cells first, such as mask[:, ::stride, ::stride]"
        )


@dataclass(frozen=True)
class FeatureMap:
    """One level of the backbone's output."""

    values: Tensor
    """[B, C, h, w]"""
    mask: Tensor | None
    """[B, h, w] bool, True where padded; None when no image of the batch is padded"""
    pixel_mask: Tensor | None = None
    """[B, H, W] the same for the images' pixels, for levels that an encoder adds"""
    extent: Tensor | None = None
    """[B, 2] (width, height) of each image without padding, in cells and fractions of them"""


@dataclass(frozen=True)
class AxisCodes:
    """Codes of places along one axis at a time, for attention that looks along rows and columns apart."""

    x: Tensor
    """[B, w, D] of the map's columns"""
    y: Tensor
    """[B, h, D] of its rows"""
    of: Callable[[Tensor], Tensor]
    """the code [..., D] of any coordinate [...] in [0, 1], by the module that made the others"""

    def cells(self) -> Tensor:
        """[B, h * w, D] the codes of a cell's row and column, added."""
        return (self.y[:, :, None] + self.x[:, None]).flatten(1, 2)


@dataclass(frozen=True)
class Memory:
    """The encoder's output: one token a cell, row by row, one level after another from fine to coarse."""

    tokens: Tensor
    """[B, L, D]"""
    position: Tensor
    """[B, L, D] the code of each cell's place, unscaled"""
    shapes: tuple[tuple[int, int], ...]
    """(h, w) of each level; the sum of all h * w is L"""
    mask: Tensor | None = None
    """[B, L] bool, True where padded; None when nothing is padded"""
    extent: Tensor | None = None
    """[B, 2] (width, height) of each image without padding, in cells and fractions of them"""
    axes: AxisCodes | None = None
    """codes along rows and columns apart, where the position part makes them"""
    kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """what was computed of the fields and is asked for again"""

    def __post_init__(self) -> None:
        require_bool(self.mask, "a memory's mask")
        if not torch.compiler.is_compiling():  # there, heights and widths may be free
            self._check_shapes()

    def _check_shapes(self) -> None:
        """Raise UserError unless the fields are of the same cells."""
        tokens, position = tuple(self.tokens.shape), tuple(self.position.shape)
        mask = None if self.mask is None else tuple(self.mask.shape)
        if (
            len(tokens) != 3
            or position[1:] != tokens[1:]
            or mask not in (None, tokens[:2])
            or any(not isinstance(shape, Sequence) or len(shape) != 2 for shape in self.shapes)
            or sum(h * w for h, w in self.shapes) != tokens[1]
        ):
            raise UserError(
                f"a memory has tokens {list(tokens)}, position {list(position)}, mask {mask and list(mask)} and shapes "
                f"{self.shapes}; they are [B, L, D], [B, L, D], [B, L] or None, and (h, w) of each level, L the sum of "
                "all h * w (Memory.from_map makes them of a map [B, D, h, w])"
            )

    @classmethod
    def from_map(cls, values: Tensor, position: Tensor, mask: Tensor | None = None) -> Memory:
        """One level's map [B, D, h, w] as memory.

        Args:
            position: the codes of the cells' places, a map [B or 1, D, h, w] or cell by cell [B or 1, h * w, D], as
                positions (`part("position", "sine")`) make them.
            mask: [B, h, w] bool, True where padded.

        Raises:
            UserError: shapes do not fit; or the mask is not bool: elsewhere 1 may stand for what is no padding.
        """
        require_map_mask(mask, values)
        if values.dim() != 4 or (position.dim() == 4 and position.shape[-2:] != values.shape[-2:]):
            raise UserError(
                f"a map is {list(values.shape)}, and the codes of its cells are {list(position.shape)}; they are "
                "[B, D, h, w], and [B, D, h, w] or [B, h * w, D]"
            )
        height, width = values.shape[-2:]
        codes = position.flatten(2).transpose(1, 2) if position.dim() == 4 else position
        codes = codes.expand(values.shape[0], -1, -1)
        padded = None if mask is None else mask.flatten(1)
        return cls(values.flatten(2).transpose(1, 2), codes, ((height, width),), padded)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of a memory of one level.

        Raises:
            UserError: there are several, and whoever asks works on one map.
        """
        if len(self.shapes) > 1:
            raise UserError(
                f"a part of this detector works on one feature map, but the encoder gives {len(self.shapes)} levels; "
                "leave it one (backbone.levels = [-1], encoder.extra_levels = 0), or take parts that read any number, "
                'such as decoder.cross_attention = "deformable"'
            )
        return self.shapes[0]

    def coarsest(self) -> Memory:
        """The last level alone."""
        if len(self.shapes) == 1:
            return self
        height, width = self.shapes[-1]
        cells = height * width
        mask = None if self.mask is None else self.mask[:, -cells:]
        return Memory(self.tokens[:, -cells:], self.position[:, -cells:], self.shapes[-1:], mask)

    def as_map(self) -> Tensor:
        """The tokens of the one level as a map [B, D, h, w]."""
        return self.tokens.transpose(1, 2).unflatten(2, self.shape)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values [B, L, ...] of all cells, level by level."""
        return values.split([h * w for h, w in self.shapes], dim=1)

    def centers(self) -> Tensor:
        """[B or 1, L, 2] the middle (x, y) of each cell in the unpadded image; beyond 1 in padding."""
        levels = []
        for ratio, (height, width) in zip(self.valid_ratios.unbind(1), self.shapes, strict=True):
            y = (torch.arange(height, device=ratio.device, dtype=ratio.dtype) + 0.5) / height
            x = (torch.arange(width, device=ratio.device, dtype=ratio.dtype) + 0.5) / width
            y, x = torch.meshgrid(y, x, indexing="ij")
            levels.append(torch.stack((x, y), dim=-1).flatten(0, 1) / ratio[:, None])
        return torch.cat(levels, dim=1)

    def image_cells(self) -> Tensor:
        """[B or 1, 2] (width, height) of each image in cells: `extent` where known, else counted in whole cells."""
        return self.whole_cells() if self.extent is None else self.extent

    def whole_cells(self) -> Tensor:
        """[B or 1, 2] how many (columns, rows) of the one level belong to each image."""
        return self.valid_ratios[:, 0] * constant(self.shape[::-1], self.valid_ratios)

    def require_axes(self, asker: str) -> AxisCodes:
        """The codes along rows and columns, or an error that names who needs them."""
        if self.axes is None:
            raise UserError(f'{asker} needs codes of rows and columns apart: set position.type = "axes"')
        return self.axes

    @property
    def valid_ratios(self) -> Tensor:
        """[B or 1, levels, 2] the share of each level's (width, height) that is image and not padding.

        It turns places in the image into places in the padded map. Counted in cells, so it differs a little from level
        to level (Deformable DETR, official code). At least float32: places do not survive bfloat16.
        """
        # Not functools.cached_property: in Python 3.11 it takes a lock, and torch.compile breaks its graph there.
        if "valid_ratios" not in self.kept:
            self.kept["valid_ratios"] = self._valid_ratios()
        return self.kept["valid_ratios"]

    def _valid_ratios(self) -> Tensor:
        dtype = dtype_of_places(self.position)
        if self.mask is None:
            return self.position.new_ones(1, len(self.shapes), 2, dtype=dtype)
        ratios = []
        for mask, shape in zip(self.split(self.mask), self.shapes, strict=True):
            valid = (~mask.unflatten(1, shape)).to(dtype)
            ratios.append(torch.stack((valid[:, 0].sum(1) / shape[1], valid[:, :, 0].sum(1) / shape[0]), dim=-1))
        return torch.stack(ratios, dim=1)
