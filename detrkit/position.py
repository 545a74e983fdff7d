"""Sine codes of places: of the cells of a feature map, and of points and corners."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from detrkit.recipe import define_slot, register

define_slot("position", offers=("width",))

Temperature = Annotated[float, Field(gt=1)]


def sine_code(coordinates: Tensor, channels: int, temperature: float) -> Tensor:
    """Code each coordinate with `channels` interleaved sines and cosines: [..., C] to [..., C * channels].

    Channel k of a coordinate u is sin (even k) or cos (odd k) of 2 pi u / temperature^(2 floor(k/2) / channels),
    at least in float32: angles do not survive bfloat16. They are multiplied and divided in this order, which matters
    for the huge angles that padding can have.
    """
    dtype = torch.float64 if coordinates.dtype == torch.float64 else torch.float32
    pair = torch.arange(channels // 2, device=coordinates.device, dtype=dtype)
    angle = coordinates.to(dtype)[..., None] * (2 * math.pi) / temperature ** (2 * pair / channels)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-3)


@register("position", "sine")
class SinePosition(nn.Module):
    """Code each cell of a map by its place within the unpadded image (DETR, section A.4).

    The place of a cell is the running count of unpadded cells up to it, plus `offset`, over the whole count:
    the cell's far edge with offset 0 (DETR and most of its descendants), its middle with -0.5.

    Args:
        width: D, half for y, half for x (y first).
        temperature: base of the frequencies; 20 in the DAB family, 10000 in DETR.
        offset: cells added to the count.
    """

    def __init__(self, *, width: int, temperature: Temperature = 10000.0, offset: float = 0.0):
        super().__init__()
        self.width, self.temperature, self.offset = width, temperature, offset

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """The codes [B, h * w, D] of a map `values` [B, C, h, w] with padding `mask` [B, h, w] or None."""
        batch, _, height, width = values.shape
        if mask is None:
            valid = torch.ones(1, height, width, dtype=torch.bool, device=values.device)
        else:
            valid = ~mask
        dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
        y, x = valid.cumsum(1, dtype=dtype), valid.cumsum(2, dtype=dtype)
        y = (y + self.offset) / (y[:, -1:, :] + 1e-6)
        x = (x + self.offset) / (x[:, :, -1:] + 1e-6)
        code = sine_code(torch.stack((y, x), dim=-1), self.width // 2, self.temperature)
        return code.flatten(1, 2).expand(batch, -1, -1)
