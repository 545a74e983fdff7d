"""Fusion of feature maps across scales, down the pyramid and up again, by convolutions (RT-DETR, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detrkit.errors import UserError
from detrkit.one_pass import all_in_one_pass


class BatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose gradients are right for one image, too.

    On a CPU PyTorch 2.14's backward pass reads a gradient [1, C, h, w] as channels-last memory by the image's stride,
    which means nothing where there is one image: that of a map turned into tokens [1, h * w, C] it misreads.
    """

    def forward(self, input: Tensor) -> Tensor:
        normed = super().forward(input)
        if not torch.compiler.is_compiling() and normed.requires_grad and len(normed) == 1:
            normed.register_hook(Tensor.contiguous)
        return normed


class ConvNorm(nn.Module):
    """A convolution without bias that keeps sizes or halves them (rounded up), a batch norm, and SiLU where asked."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, activated: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm: Any = BatchNorm2d(outputs)
        self.activation = nn.SiLU() if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Puts the norm into the convolution for good; then it is for evaluation alone."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.put(*self.folded())

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights and bias [C] with the norm in them, as evaluation has it."""
        norm = self.norm
        return fuse_conv_bn_weights(
            self.conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )

    def put(self, weight: Tensor, bias: Tensor) -> None:
        """Takes these in place of convolution and norm."""
        self.conv.weight, self.conv.bias = (nn.Parameter(x.detach(), requires_grad=False) for x in (weight, bias))
        self.norm = nn.Identity()


class RepBlock(nn.Module):
    """The sum of a 3 x 3 and a 1 x 1 convolution, each normed, then SiLU (RepVGG, without its identity branch)."""

    def __init__(self, width: int):
        super().__init__()
        self.wide = ConvNorm(width, width, 3, activated=False)
        self.narrow: ConvNorm | None = ConvNorm(width, width, 1, activated=False)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        both = self.wide(x) if self.narrow is None else self.wide(x) + self.narrow(x)
        return self.activation(both)

    def fold(self) -> None:
        """Makes one 3 x 3 convolution of both for good."""
        if self.narrow is None:
            return
        (wide, bias), (narrow, other) = self.wide.folded(), self.narrow.folded()
        self.wide.put(wide + F.pad(narrow, (1, 1, 1, 1)), bias + other)
        self.narrow = None


class FusionBlock(nn.Module):
    """Two maps side by side [B, 2 D, h, w] to one [B, D, h, w]: a branch of `blocks` RepBlocks and one around them.

    `expansion` times D channels are inside; where that is not D, a last 1 x 1 convolution gives D.
    """

    def __init__(self, width: int, *, blocks: int, expansion: float):
        super().__init__()
        inner = int(width * expansion)
        self.into = ConvNorm(2 * width, inner, 1)
        self.around = ConvNorm(2 * width, inner, 1)
        self.blocks = nn.Sequential(*(RepBlock(inner) for _ in range(blocks)))
        self.last = ConvNorm(inner, width, 1) if inner != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.into(x)) + self.around(x))


class CrossScaleFusion(nn.Module):
    """Coarse maps into finer ones, then fine ones into coarser ones (RT-DETR, figure 4).

    Args:
        width: D.
        levels: each of half the size of the one before, rounded up.
        blocks: RepBlocks of each fusion.
        expansion: channels inside a fusion, in D.
    """

    def __init__(self, *, width: int, levels: int, blocks: int, expansion: float):
        super().__init__()
        steps = range(levels - 1)
        self.laterals = nn.ModuleList(ConvNorm(width, width, 1) for _ in steps)
        self.down = nn.ModuleList(FusionBlock(width, blocks=blocks, expansion=expansion) for _ in steps)
        self.halving = nn.ModuleList(ConvNorm(width, width, 3, stride=2) for _ in steps)
        self.up = nn.ModuleList(FusionBlock(width, blocks=blocks, expansion=expansion) for _ in steps)

    def prepare_for_detection(self) -> None:
        for modules in (self.laterals, self.down, self.halving, self.up):
            all_in_one_pass(modules)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [B, D, h, w], fine to coarse, to as many of the same sizes."""
        top, laterals = maps[-1], []
        for lateral, fuse, finer in zip(self.laterals, self.down, reversed(maps[:-1]), strict=True):
            top = lateral(top)
            laterals.append(top)
            raised = F.interpolate(top, size=finer.shape[-2:], mode="nearest")
            top = fuse(torch.cat((raised, finer), dim=1))
        fused = [top]
        for halve, fuse, coarser in zip(self.halving, self.up, reversed(laterals), strict=True):
            halved = halve(fused[-1])
            if not torch.compiler.is_exporting() and halved.shape != coarser.shape:
                raise UserError(
                    'encoder "hybrid" fuses levels of which each has half the size of the one before, but a map of '
                    f"{_size(fused[-1])} cells is followed by one of {_size(coarser)}; set backbone.dilated = false, "
                    "and name neighbours in backbone.levels, such as [-3, -2, -1]"
                )
            fused.append(fuse(torch.cat((halved, coarser), dim=1)))
        return fused


def _size(values: Tensor) -> str:
    return f"{values.shape[-2]} x {values.shape[-1]}"
