"""Sine codes of places: of the cells of a feature map, and of points and corners."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from detrkit.errors import lacking
from detrkit.layers import MLP, Part, dtype_of_places
from detrkit.recipe import define_slot, register
from detrkit.structures import AxisCodes, require_map_mask

Temperature = Annotated[float, Field(gt=1, le=1e9)]


def sine_code(coordinates: Tensor, channels: int, temperature: float) -> Tensor:
    """Code each coordinate with `channels` interleaved sines and cosines: [..., C] to [..., C * channels].

    Channel k of a coordinate u is sin (even k) or cos (odd k) of 2 pi u / temperature^(2 floor(k/2) / channels),
    at least in float32: angles do not survive bfloat16. They are multiplied and divided in this order, which matters
    for the huge angles that padding can have.
    """
    dtype = dtype_of_places(coordinates)
    pair = torch.arange(channels // 2, device=coordinates.device, dtype=dtype)
    scaled = coordinates.to(dtype) * (2 * math.pi)
    angle = scaled[..., None] / temperature ** (2 * pair / channels)  # [..., C, channels / 2]
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-3)


def coded_boxes(code: Tensor) -> Tensor:
    """The boxes [..., 4] (cx, cy, w, h) in [0, 1) that a sine code [..., 4 * channels] of (y, x, w, h) was made of.

    DAB-DETR and what came after hand such codes to their layers in place of boxes. The first sine and cosine of each
    number go round once from 0 to 1, so boxes come back to float32's precision, and with their graph.
    """
    sine, cosine = code.unflatten(-1, (4, -1))[..., :2].unbind(-1)
    y, x, w, h = (torch.atan2(sine, cosine) / (2 * math.pi)).remainder(1).unbind(-1)
    return torch.stack((x, y, w, h), dim=-1)


class CellPosition(Part):
    """Codes the cells of a map by their places."""

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """The codes [B, h * w, D] of a map `values` [B, C, h, w] with padding `mask` [B, h, w] bool, or None."""
        raise lacking(self, CellPosition.forward)

    def axes(self, values: Tensor, mask: Tensor | None) -> AxisCodes | None:
        """The codes of its rows and columns apart; None for a part that codes both at once."""
        return None


define_slot("position", offers=("width",), base=CellPosition)


@register("position", "sine")
class SinePosition(CellPosition):
    """Code each cell of a map by its place within the unpadded image (DETR, section A.4).

    The place of a cell is the running count of unpadded cells up to it, plus `offset`, over the whole count:
    the cell's far edge with offset 0 (DETR and most of its descendants), its middle with -0.5. Channel k of a place u
    is the sine (even k) or cosine (odd k) of 2 pi u / temperature^(2 floor(k / 2) / (D / 2)).

    Args:
        width: D, half for y, half for x (y first).
        temperature: base of the frequencies; 20 in the DAB family, 10000 in DETR.
        offset: cells added to the count.
        eps: added to the whole count. It is felt where that is 0, in rows and columns of nothing but padding: with an
            offset, their places are offset / eps.
    """

    def __init__(
        self,
        *,
        width: int,
        temperature: Temperature = 10000.0,
        offset: Annotated[float, Field(ge=-1, le=1)] = 0.0,
        eps: Annotated[float, Field(gt=0)] = 1e-6,
    ):
        super().__init__()
        self.width, self.temperature, self.offset, self.eps = width, temperature, offset, eps

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """The codes [B, h * w, D] of a map `values` [B, C, h, w] with padding `mask` [B, h, w] or None."""
        require_map_mask(mask, values)
        batch, _, height, width = values.shape
        if mask is None:
            valid = torch.ones(1, height, width, dtype=torch.bool, device=values.device)
        else:
            valid = ~mask
        dtype = dtype_of_places(values)
        y, x = valid.cumsum(1, dtype=dtype), valid.cumsum(2, dtype=dtype)
        y = (y + self.offset) / (y[:, -1:, :] + self.eps)
        x = (x + self.offset) / (x[:, :, -1:] + self.eps)
        code = sine_code(torch.stack((y, x), dim=-1), self.width // 2, self.temperature)
        return code.flatten(1, 2).expand(batch, -1, -1)


@register("position", "counted")
class CountedPosition(CellPosition):
    """Code each cell of a map by its row and column, counted from 0 in cells (RT-DETR, official code).

    The first quarter of the channels is the sine of the row times temperature^(-k / (D / 4)), k = 0, 1, ..., the second
    its cosine, the other half the same of the column. Padding counts as well: maps of one size have one code.

    Args:
        width: D.
        temperature: base of the frequencies.
    """

    def __init__(self, *, width: int, temperature: Temperature = 10000.0):
        super().__init__()
        self.quarter, self.temperature = width // 4, temperature

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        batch, _, height, width = values.shape
        dtype = dtype_of_places(values)
        step = torch.arange(self.quarter, device=values.device, dtype=dtype) / self.quarter
        frequency = self.temperature**-step
        y, x = (
            torch.cat((angle.sin(), angle.cos()), dim=-1)
            for cells in (height, width)
            for angle in [torch.arange(cells, device=values.device, dtype=dtype)[:, None] * frequency]
        )
        code = torch.cat((y[:, None].expand(-1, width, -1), x.expand(height, -1, -1)), dim=-1)
        return code.flatten(0, 1).expand(batch, -1, -1)


@register("position", "axes")
class AxisPosition(CellPosition):
    """Code rows and columns apart, each by an MLP of the sines of its middle (Anchor DETR, section 3.4).

    Counted along the mask's first row and column: padding is at the right and bottom.

    Args:
        width: D, all of it for one coordinate.
        temperature: base of the frequencies.
    """

    def __init__(self, *, width: int, temperature: Temperature = 10000.0):
        super().__init__()
        self.width, self.temperature = width, temperature
        self.embed = MLP(width, width, width, 2)

    def code(self, coordinates: Tensor) -> Tensor:
        """The code [..., D] of coordinates [...]."""
        return self.embed(sine_code(coordinates[..., None], self.width, self.temperature))

    def axes(self, values: Tensor, mask: Tensor | None) -> AxisCodes:
        require_map_mask(mask, values)
        batch, _, height, width = values.shape
        dtype = dtype_of_places(values)
        if mask is None:
            mask = torch.zeros(1, height, width, dtype=torch.bool, device=values.device)
        codes = []
        for valid in (~mask[:, 0], ~mask[:, :, 0]):
            count = valid.cumsum(1, dtype=dtype)
            codes.append(self.code((count - 0.5) / count[:, -1:]).expand(batch, -1, -1))
        return AxisCodes(x=codes[0], y=codes[1], of=self.code)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        return self.axes(values, mask).cells()
