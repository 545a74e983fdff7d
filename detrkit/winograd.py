"""Convolutions of 3 x 3 pixels with a quarter of the multiplications: Winograd's, in tiles of 4 x 4.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016, arXiv:1509.09308), section 4: a tile of
the result is AT [(G g GT) * (BT d B)] A, of 6 x 6 pixels d and a kernel g. With channels, the product in the middle is
36 products of matrices, 36 multiplications for 16 values instead of 144. Here the transforms of both directions are one
product each, by the Kronecker product of a matrix with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from detrkit.onednn import WORTHWHILE, times_as_fast

TILE, KERNEL = 4, 3
SIDE = TILE + KERNEL - 1  # of the pixels that a tile of the result is made of
ENOUGH_CHANNELS = 128  # with fewer, moving tiles takes longer than what is saved
ENOUGH_TILES = 24  # with fewer, reading 36 matrices of weights does

# Where the polynomials are evaluated, beside infinity. With the paper's 0, 1, -1, 2, -2 rounding is twice as large.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def transformed(weight: Tensor) -> Tensor:
    """Kernels [O, I, 3, 3] as `convolve` wants them: [36, I, O], float32 from float64."""
    _, kernel, _ = _matrices()
    wide = torch.einsum("ax,by,oixy->abio", kernel, kernel, weight.double())
    return wide.flatten(0, 1).float().contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of a float32 map with zeros around it, without gradients.

    Args:
        x: [B, I, h, w].
        weight: [36, I, O], of `transformed`.
        bias: [O].

    Returns:
        [B, O, h, w] in channels-last layout, of a memory of its own; as `torch.nn.functional.conv2d(x, kernels, bias,
        padding=1)`, but for twice its rounding.
    """
    (batch, channels, height, width), out = x.shape, weight.shape[2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    above = [0, 0, 1, columns * TILE + 1 - width, 1, rows * TILE + 1 - height]
    padded = F.pad(x.permute(0, 2, 3, 1), above).contiguous()
    image, row, column, _ = padded.stride()
    strides = (row, column, image, TILE * row, TILE * column, 1)
    tiles = padded.as_strided((SIDE, SIDE, batch, rows, columns, channels), strides)
    to_points, from_points = _transforms()
    points = (to_points @ tiles.reshape(SIDE**2, -1)).view(SIDE**2, -1, channels)
    values = from_points @ torch.bmm(points, weight).view(SIDE**2, -1)
    y = x.new_empty(batch, rows, TILE, columns, TILE, out)
    found = values.view(TILE, TILE, batch, rows, columns, out).permute(2, 3, 0, 4, 1, 5)
    y = y.copy_(found) if bias is None else torch.add(found, bias, out=y)
    whole = y.view(batch, rows * TILE, columns * TILE, out).permute(0, 3, 1, 2)
    return whole[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def gains(x: Tensor, out: int) -> bool:
    """Whether that is faster than oneDNN's for a float32 map [B, I, h, w] on the CPU and `out` channels."""
    batch, channels, height, width = x.shape
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    if min(channels, out) < ENOUGH_CHANNELS or tiles < ENOUGH_TILES or x.dtype != torch.float32:
        return False
    return winograd_gain(torch.get_num_threads()) >= WORTHWHILE


@lru_cache
def winograd_gain(threads: int) -> float:
    """How many times as fast as oneDNN's convolution it is, on so many threads.

    At a layer of a ResNet: a twentieth of a second, once in a process for each number of threads.
    """
    x, kernels, bias = (torch.ones(shape, device="cpu") for shape in ((1, 256, 40, 40), (256, 256, 3, 3), (256,)))
    x = x.contiguous(memory_format=torch.channels_last)
    wide = transformed(kernels)
    ones = [1, 1]
    packed = torch.ops.mkldnn._reorder_convolution_weight(kernels, ones, ones, ones, 1, list(x.shape))

    def by_onednn() -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, ones, ones, ones, 1, "none", [], "")

    def in_tiles() -> Tensor:
        return convolve(x, wide, bias)

    return times_as_fast(in_tiles, by_onednn, rounds=3)


@lru_cache
def _transforms() -> tuple[Tensor, Tensor]:
    """Of tiles to points [36, 36], and of products at points to a tile of the result [16, 36], float32."""
    result, _, pixels = _matrices()
    return torch.kron(pixels, pixels).float(), torch.kron(result, result).float()


@lru_cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """AT [4, 6], G [6, 3] and BT [6, 6] for the points and infinity, float64 (Toom and Cook's way to them)."""
    points = torch.tensor(POINTS, dtype=torch.float64, device="cpu")
    result, kernel, pixels = (points.new_zeros(shape) for shape in ((TILE, SIDE), (SIDE, KERNEL), (SIDE, SIDE)))
    for index, point in enumerate(points):
        others = [*points[:index], *points[index + 1 :]]
        powers = point ** torch.arange(TILE, device="cpu")
        result[:, index] = powers
        kernel[index] = powers[:KERNEL] / torch.stack([point - other for other in others]).prod()
        pixels[index, :-1] = _with_roots(others)
    result[-1, -1] = kernel[-1, -1] = 1
    pixels[-1] = _with_roots(list(points))
    return result, kernel, pixels


def _with_roots(roots: Sequence[Tensor]) -> Tensor:
    """Coefficients [len + 1] of the product of x - root, of the constant first."""
    polynomial = roots[0].new_ones(1)
    for root in roots:
        polynomial = F.pad(polynomial, (1, 0)) - root * F.pad(polynomial, (0, 1))
    return polynomial
