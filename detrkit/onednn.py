"""Layers that take oneDNN on a CPU where PyTorch would take MKL, whose kernels are slow on processors of other makes.

That is so of linear layers, and of kernels of one pixel on one thread: MKL has AVX2 code for an AMD processor, half the
rate of oneDNN's AVX512. Weights, names and numbers are those of `nn.Linear` and `nn.Conv2d`, but for rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENOUGH = 2**21  # multiply-adds of a product; less is not worth the call
WORTHWHILE = 1.3  # times as fast; with less, the choice would be chance, and the last digits with it


class Conv2d(nn.Conv2d):
    """A convolution that has oneDNN do float32 kernels of one pixel on one CPU thread, as on several.

    There PyTorch copies and multiplies by MKL instead (`use_mkldnn` in ATen/native/Convolution.cpp), which takes twice
    the time on an AMD processor, forward and backward. Not so where the kernel is dilated, which is nothing to one
    pixel.

    Such kernels of stride 2 on a few channels, RepVGG's on an image say, are given every second pixel: with PyTorch
    2.11 to 2.14 their gradient writes beyond its memory on CPUs with AVX512, where channels lie last.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kernel_size != (1, 1) or self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        stride: Any = self.stride
        if stride != (1, 1) and self.padding == (0, 0) and self.in_channels < 16:
            input, stride = input[..., :: stride[0], :: stride[1]], 1
        by_onednn = not torch.compiler.is_compiling() and _goes_by_mkl(input)
        return F.conv2d(input, weight, bias, stride, self.padding, 2 if by_onednn else 1, self.groups)


class Linear(nn.Linear):
    """A linear layer that has oneDNN do its products, forward and backward, where `linear` does."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


_FORMS: dict[type, type] = {nn.Conv2d: Conv2d, nn.Linear: Linear}


def use_onednn(module: nn.Module) -> None:
    """Has the linear layers and convolutions in a module take oneDNN, in place: they change their class.

    Those of a class of their own stay as they are.
    """
    for part in module.modules():
        if form := _FORMS.get(type(part)):
            part.__class__ = form


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] times the transpose of weight [O, I], plus bias [O]: [..., O], as `torch.nn.functional.linear`.

    By oneDNN in float32 on a CPU where that was measured to be faster, if it is eager and enough to do; by
    PyTorch's own way else.
    """
    # The first is for torch.compile, which is to meet no question about shapes.
    if torch.compiler.is_compiling() or not gains(x, weight, work=x.numel() * weight.shape[0]):
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias)


def gains(*tensors: Tensor, work: int) -> bool:
    """Whether eager products of tensors are faster by oneDNN: float32 on a CPU, of `work` multiply-adds each."""
    if torch.is_autocast_enabled("cpu") or any(x.device.type != "cpu" or x.dtype != torch.float32 for x in tensors):
        return False
    return gains_at(work)


def gains_at(work: int) -> bool:
    """Whether eager float32 products of `work` multiply-adds each are faster by oneDNN on the CPU."""
    if is_watched() or not torch._C._get_mkldnn_enabled() or work < ENOUGH:
        return False
    return onednn_gain(torch.get_num_threads()) >= WORTHWHILE


class _Product(torch.autograd.Function):
    """`linear` by oneDNN, whose operation has no gradients; they are two such products."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return multiply(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, given = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        by = linear if torch.is_grad_enabled() else multiply  # a second derivative is wanted, or not
        return (
            by(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            by(rows.t(), given.t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` by oneDNN whatever it costs, without gradients; x may be of any strides."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # of other strides it takes a thousand times as long
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@lru_cache
def onednn_gain(threads: int) -> float:
    """How many times as fast as by PyTorch's own way a linear layer is by oneDNN, on so many threads; 0 without it.

    At a layer of a detector's size: a hundredth of a second, once in a process for each number of threads.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0.0
    x, weight, bias = (torch.ones(shape, device="cpu") for shape in ((320, 256), (256, 256), (256,)))
    return times_as_fast(partial(multiply, x, weight, bias), partial(F.linear, x, weight, bias), rounds=8)


def times_as_fast(way: Callable[[], Tensor], other: Callable[[], Tensor], *, rounds: int) -> float:
    """How many times as fast as another a way is: they take turns, and each one's shortest counts."""
    best = {way: math.inf, other: math.inf}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _, run in product(range(rounds), best):
            start = time.perf_counter()
            run()
            best[run] = min(best[run], time.perf_counter() - start)
    return best[other] / best[way]


def is_watched() -> bool:
    """Whether operations are traced or counted by who knows PyTorch's own only."""
    modes = torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
    return modes or torch._C._is_tracing()


def _goes_by_mkl(maps: Tensor) -> bool:
    """Whether PyTorch would; small maps that come alone are none of oneDNN's, dilated or not."""
    is_small = len(maps) == 1 and maps.numel() <= 20480
    by_kind = maps.device.type == "cpu" and maps.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return by_kind and not is_small and torch.get_num_threads() == 1
