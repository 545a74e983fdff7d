"""Reading maps between their cells, by PyTorch's own kernel in a graph of `torch.compile` too."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def read_bilinear(maps: Tensor, places: Tensor) -> Tensor:
    """Maps [B, D, h, w] at places [B, N, K, 2] (x, y), from -1 to 1 over the map, 0 outside of it: [B, D, N, K].

    In a graph on the CPU the inductor would write the four loads of a place out and work its indices out anew for every
    channel, which takes 6 times as long as the kernel (5 times with the backward pass).
    """
    if torch.compiler.is_dynamo_compiling() and maps.device.type == "cpu":  # an export has the plain one
        return _kernel(maps, places)
    return F.grid_sample(maps, places, align_corners=False)


@torch.library.custom_op("detrkit::read_bilinear", mutates_args=())
def _kernel(maps: Tensor, places: Tensor) -> Tensor:
    return F.grid_sample(maps, places, align_corners=False)


@torch.library.custom_op("detrkit::read_bilinear_backward", mutates_args=())
def _backward(gradient: Tensor, maps: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    bilinear = zeros = 0  # how it is interpolated, and what is outside
    both = [True, True]
    return torch.ops.aten.grid_sampler_2d_backward(gradient.contiguous(), maps, places, bilinear, zeros, False, both)


@_kernel.register_fake
def _(maps: Tensor, places: Tensor) -> Tensor:
    return maps.new_empty(*maps.shape[:2], *places.shape[1:3])


@_backward.register_fake
def _(gradient: Tensor, maps: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    return maps.new_empty(maps.shape), places.new_empty(places.shape)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return _backward(gradient, *ctx.saved_tensors)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_kernel.register_autograd(_gradients, setup_context=_keep)
