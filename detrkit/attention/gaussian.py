"""Gaussian attention priors as dot products.

-(a_x (x - c_x)^2 + a_y (y - c_y)^2) is, up to a constant for each query that the softmax ignores, the dot product of
(-a_x, 2 a_x c_x, -a_y, 2 a_y c_y) with (x^2, x, y^2, y): four more channels in place of a [B, H, N, L] bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.attention.terms import Term
from detrkit.layers import constant, dtype_of_places
from detrkit.structures import Memory


def gaussian_query(center: Tensor, precision: Tensor, shape: tuple[int, int]) -> Tensor:
    """Query features [..., 4] of the Gaussian -sum(precision * (cell - center)^2).

    Args:
        center: [..., 2] (x, y) in cells, the first cell's middle at 0.5.
        precision: [..., 2] a_x and a_y, per squared cell.
        shape: (h, w) of the map. Coordinates count from its middle, which keeps squares small and float32 exact enough.
    """
    height, width = shape
    center = center - constant([width / 2, height / 2], center)
    return torch.stack((-precision, 2 * precision * center), dim=-1).flatten(-2)


def gaussian_center(features: Tensor, shape: tuple[int, int]) -> Tensor:
    """The centres [..., 2] in cells of query features [..., 4]: the inverse of `gaussian_query`.

    Not finite along an axis whose precision is 0, where the Gaussian has no centre.
    """
    precision, product = features.unflatten(-1, (2, 2)).unbind(-1)  # -a and 2 a c, by axis
    height, width = shape
    return product / (-2 * precision) + constant([width / 2, height / 2], features)


def gaussian_key(shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Key features [h * w, 4]: (x^2, x, y^2, y) of each cell's middle, counted from the map's."""
    height, width = shape
    y = torch.arange(height, device=device, dtype=dtype) + 0.5 - height / 2
    x = torch.arange(width, device=device, dtype=dtype) + 0.5 - width / 2
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((x * x, x, y * y, y), dim=-1).flatten(0, 1)


def split_in_two(features: Tensor, half: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float32 tensor as a sum of two of half the bits, exact to about 16 bits in bfloat16 and 21 in float16."""
    high = features.to(half)
    return high, (features - high.float()).to(half)


class GaussianKey(nn.Module):
    """The cells' squares and coordinates [1, 1, L, 4]; 12 channels of half precision (see `GaussianTerm`)."""

    def forward(self, memory: Memory) -> Tensor:
        tokens = memory.tokens
        features = gaussian_key(memory.shape, tokens.device, dtype_of_places(tokens))
        if half := _half_precision(tokens):
            high, low = split_in_two(features, half)
            features = torch.cat((high, high, low), dim=-1)
        return features[None, None]


class GaussianTerm(Term):
    """A Gaussian over the map for each query and head.

    Half precision is too coarse for four channels (in bfloat16 probabilities are off by 0.08 at strong Gaussians).
    Both factors are split in a high and a low part, and three of the four products are kept: high.high + low.high +
    high.low.
    """

    key, head_widths = "gaussian", 0

    def make_key(self, *, width: int, heads: int) -> nn.Module:
        return GaussianKey()

    def features(self, center: Tensor, precision: Tensor, memory: Memory) -> Tensor:
        """Query features [B, H, N, F] from centres and precisions [B, H, N, 2] in cells."""
        features = gaussian_query(center, precision, memory.shape)
        if half := _half_precision(memory.tokens):
            high, low = split_in_two(features, half)
            features = torch.cat((high, low, high), dim=-1)
        return features


def _half_precision(tokens: Tensor) -> torch.dtype | None:
    """The half precision that attention over these tokens runs in, by its own type or by autocast; None for none."""
    device, dtype = tokens.device.type, tokens.dtype
    # torch 2.11 compiles no question whether a device has autocast; "meta" is the one that has none.
    if not tokens.is_meta and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return dtype if dtype in (torch.bfloat16, torch.float16) else None
