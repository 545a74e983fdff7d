"""Small layers that every part shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detrkit.dropout import Dropout
from detrkit.errors import UserError

Activation = Literal["relu", "gelu", "prelu", "silu"]
Smooth = Literal["relu", "silu"]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Layers = Annotated[int, Field(ge=0, le=1000)]
Depth = Annotated[int, Field(ge=1, le=1000)]  # of what cannot be left out
Probability = Annotated[float, Field(ge=0, lt=1)]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "prelu": nn.PReLU, "silu": nn.SiLU}


class Part(nn.Module):
    """What any module of a detector may say of itself to those who start and train it."""

    own_start = False
    """whether its weights start as it made them, whatever the module around it draws"""
    place_layers: tuple[str, ...] = ()
    """names of its layers that say where to look; they train at `train.place_rate_factor` times the rate"""

    def __init__(self) -> None:  # that of nn.Module takes anything, and a part's arguments are its options
        super().__init__()


def can_be_named(name: str) -> bool:
    """Whether a module may go by that name in a `ModuleDict`, which has attributes and methods of its own."""
    return bool(name) and "." not in name and not hasattr(nn.ModuleDict(), name)


def require_module_names(names: Iterable[str], what: str) -> None:
    """Raise UserError unless parts, called `what`, can be named so in a `ModuleDict`."""
    if taken := [name for name in names if not can_be_named(name)]:
        raise UserError(f'{what} cannot be named "{taken[0]}"; register it by another name')


class MLP(nn.Module):
    """`depth` linear layers with ReLU or SiLU between: [..., inputs] to [..., outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int, activation: Smooth = "relu"):
        super().__init__()
        self.between = torch.relu if activation == "relu" else F.silu
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the output."""
        return cast(nn.Linear, self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.between(layer(x))
        return self.layers[-1](x)

    def zero_last(self) -> MLP:
        """Start with an output of zero everywhere; returns itself."""
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        return self


class FeedForward(nn.Module):
    """The transformer's two-layer network, without its residual: [B, N, D] to [B, N, D]."""

    def __init__(self, *, width: int, hidden: int, activation: Activation = "relu", dropout: float = 0.0):
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]()  # PReLU learns a slope, so every layer owns one
        self.linear2 = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


def zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    """Start the bias of a layer that has one at zero."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more."""
    return reduce(add, values)


def constant(values: Sequence | float, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A few numbers that the host knows, on `like`'s device and in its type or `dtype`.

    Each is filled in there. `like.new_tensor(values)` is a copy from the host, which waits until a GPU has done all it
    was given so far, and which no CUDA graph can hold.
    """
    if isinstance(values, Sequence):
        return torch.stack([constant(value, like, dtype) for value in values])
    return torch.full((), values, dtype=dtype or like.dtype, device=like.device)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """What the host has worked out, on a device, without waiting for it.

    By way of pinned memory: a copy of more than 64 KiB out of any other may wait until a GPU has done all that it was
    given so far, though it is `non_blocking`.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.contiguous().pin_memory()  # a copy of other strides goes by way of memory that is not pinned
    return values.to(device, non_blocking=True)


class Arriving:
    """Values on their way from a GPU to the host, which does other things meanwhile; a CPU's are there at once."""

    def __init__(self, values: Tensor):
        self._values = values
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            # The values' own device's, which need not be the current one: another's stream has nothing to wait for.
            self._event = torch.cuda.current_stream(values.device).record_event()

    def read(self) -> Tensor:
        """The values on the host, waiting for the copy of them alone."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


def xavier_matrices(module: nn.Module) -> None:
    """Draw every tensor of two or more dimensions Xavier-uniform, as DETR's transformers start.

    A part below that says `own_start = True` is left as it made itself.
    """
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for child in module.children():
        if not (isinstance(child, Part) and child.own_start):
            xavier_matrices(child)


def shrink_mask(mask: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """The padding mask [B, H, W] at a map's size [B, h, w]: cell (i, j) takes pixel (floor(i H/h), floor(j W/w))."""
    if mask is None:
        return None
    if torch.compiler.is_exporting():  # runtimes divide otherwise, and take the pixel before where one is met exactly
        for axis, few in enumerate(shape, start=1):
            places = torch.arange(few, dtype=torch.float32, device=mask.device) * mask.shape[axis] / few
            mask = mask.index_select(axis, places.long())
        return mask
    return F.interpolate(mask[None].to(torch.float32), size=shape)[0].to(torch.bool)


def dtype_of_places(like: Tensor) -> torch.dtype:
    """The type that places are computed in beside this tensor: at least float32, as they do not survive bfloat16."""
    return torch.promote_types(like.dtype, torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """The same in float32 if it was in half precision: places do not survive bfloat16."""
    return x if x.element_size() >= 4 else x.float()


class GroupNorm(nn.GroupNorm):
    """A group norm of any map [B, C, h, w]: groups of a single number are their bias, for one image, too.

    PyTorch refuses those where B = 1, and only there: one image with a level of 1 x 1 cells.
    """

    def forward(self, input: Tensor) -> Tensor:
        cudnn = torch.backends.cudnn.enabled
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps, cudnn)


def masked_group_norm(values: Tensor, outside: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm of a map [B, C, h, w] with statistics over the cells where `outside` [B, 1, h, w] is False.

    Computed at least in float32, and given in the wider type of map and norm.
    """
    wide = at_least_float32(values)
    grouped = wide.unflatten(1, (norm.num_groups, -1))  # [B, G, C / G, h, w]
    inside = (~outside)[:, None].to(grouped.dtype)
    axes = (2, 3, 4)
    count = inside.sum(axes, keepdim=True) * grouped.shape[2]
    mean = (grouped * inside).sum(axes, keepdim=True) / count
    variance = ((grouped - mean).square() * inside).sum(axes, keepdim=True) / count
    normed = ((grouped - mean) * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    normed = normed * norm.weight[:, None, None] + norm.bias[:, None, None]
    return normed.to(torch.promote_types(values.dtype, norm.weight.dtype))


def at_most(count: int, size: int) -> int:
    """The smaller of a count and a tensor's size, without a bound on a size that an export leaves open.

    `min` is right in a graph of `torch.compile`, which knows no `sym_min` of plain numbers up to torch 2.11.
    """
    return torch.sym_min(count, size) if isinstance(size, torch.SymInt) else min(count, size)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, L, F] at index [B, N]: [B, N, F]."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))
