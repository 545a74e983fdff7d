"""Convolutions for detection: with shortcut and activation in one pass, from weights as oneDNN keeps them.

On a CPU the time of a ResNet-50 is not that of its products alone: what a convolution has written is read again to be
added and rectified, and weights are cast and brought into oneDNN's layout in every pass (benchmarks/one_pass.py).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from detrkit import winograd
from detrkit.casts import CastsOnce, state_of
from detrkit.onednn import Conv2d, is_watched

_CONVOLUTIONS = (nn.Conv2d, Conv2d)  # themselves, no class of somebody's own
_NORMS = (FrozenBatchNorm2d, FrozenBatchNormAct2d)  # likewise: not what folding leaves of one, which computes nothing
_ADDITIONS = (operator.add, operator.iadd, torch.add)

_WINOGRADS = ([1, 1], [1, 1], [1, 1], 1)  # padding, stride, dilation and groups of such a convolution

_NONE: tuple[str, tuple[float, ...]] = ("none", ())
_RELU: tuple[str, tuple[float, ...]] = ("relu", ())
# By oneDNN's name and numbers: what does the same elsewhere, in place.
_PLAIN: dict[tuple[str, tuple[float, ...]], Callable[[Tensor], Tensor]] = {
    _NONE: lambda x: x,
    _RELU: partial(F.relu, inplace=True),
    ("swish", ()): partial(F.silu, inplace=True),
    ("hardswish", ()): partial(F.hardswish, inplace=True),
    ("hardtanh", (0.0, 6.0)): partial(F.relu6, inplace=True),
}
_ACTIVATIONS: dict[type, tuple[str, tuple[float, ...]]] = {
    nn.ReLU: _RELU,
    nn.SiLU: ("swish", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.ReLU6: ("hardtanh", (0.0, 6.0)),
}


class OnePassConv2d(CastsOnce, Conv2d):
    """activation(convolution(x) + other) in one pass over the map, for detection alone.

    That is so on a CPU, of float32 and bfloat16 (as autocast wants it); elsewhere, and where a graph is made of it, it
    is the three operations, and so where Winograd's convolution saves more. Names in a state dict are those of a
    convolution.
    """

    activation: tuple[str, tuple[float, ...]] = _NONE
    """oneDNN's name of it, and its numbers"""
    overwrites: bool = False
    """whether nobody reads `other` afterwards, so that the sum may stand in its memory"""
    packed: tuple[Any, Tensor, Tensor | None] | None = None
    """of which weights, and they and the bias as oneDNN wants them"""
    in_tiles: tuple[Any, Tensor] | None = None
    """of which weights, and they as Winograd's convolution wants them"""

    def __getstate__(self) -> dict[str, Any]:
        # What is in a layout of oneDNN's cannot be copied.
        return super().__getstate__() | {"packed": None, "in_tiles": None}

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if not self._is_one(x, other, dtype):
            return self._finish(self._conv_forward(x, *self.cast("weight", "bias")), other)
        x = x.to(dtype)
        if self._layout() == _WINOGRADS and self.kernel_size == (3, 3) and winograd.gains(x, self.out_channels):
            return self._finish(winograd.convolve(x, self._in_tiles(), self.bias), other)
        weight, bias = self._packed(x)
        name, numbers = self.activation
        if other is None:
            layout = self._layout()
            return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *layout, name, list(numbers), "")
        ways: tuple[Any, ...] = (*self._layout(), "add", 1.0, None if name == "none" else name, [], None)
        if self.overwrites:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, weight, bias, *ways)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, weight, bias, *ways)

    def _finish(self, y: Tensor, other: Tensor | None) -> Tensor:
        """The other two operations, upon the convolution's own map."""
        if other is not None:
            y = y.add_(other) if (y.dtype, y.shape) == (other.dtype, other.shape) else y + other
        return _PLAIN[self.activation](y)

    def _is_one(self, x: Tensor, other: Tensor | None, dtype: torch.dtype) -> bool:
        """Whether one operation of oneDNN can do all; then Winograd's tiles may, too."""
        if torch.compiler.is_compiling() or is_watched() or not _has_onednn():
            return False
        given = [t for t in (self.weight, x, other) if t is not None]
        if any(t.device.type != "cpu" for t in given) or dtype not in (torch.float32, torch.bfloat16) or not x.numel():
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return False
        if other is None:
            return True
        return other.dtype == dtype and other.shape == (len(x), self.out_channels, *self._size(x))

    def _size(self, x: Tensor) -> list[int]:
        """(h, w) of what becomes of a map [B, C, h, w]."""
        padding, stride, dilation, _ = self._layout()
        sides = zip(x.shape[2:], self.kernel_size, stride, padding, dilation, strict=True)
        return [(side + 2 * pad - apart * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, apart in sides]

    def _layout(self) -> tuple[list[Any], list[int], list[int], int]:
        return list(self.padding), list(self.stride), list(self.dilation), self.groups

    def _packed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights and bias for a map [B, C, h, w], made when they are first wanted and when they have changed."""
        of = (x.dtype, *(state_of(t) for t in (self.weight, self.bias) if t is not None))
        if self.packed is None or self.packed[0] != of:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = reorder(self.weight.detach().to(x.dtype), *self._layout(), list(x.shape))
            self.packed = (of, weight, None if self.bias is None else self.bias.detach().to(x.dtype))
        return self.packed[1:]

    def _in_tiles(self) -> Tensor:
        of = state_of(self.weight)
        if self.in_tiles is None or self.in_tiles[0] != of:
            self.in_tiles = (of, winograd.transformed(self.weight.detach()))
        return self.in_tiles[1]


def in_one_pass(body: nn.Module) -> nn.Module:
    """A model in evaluation mode whose convolutions also add and activate, where nobody reads between.

    Modules stay the same objects and change their class. A model whose path depends on its input comes back as it is,
    and so does one with hooks, which the graph would not call.

    Args:
        body: of a map [B, C, h, w] to maps.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in body.modules()):
        return body
    try:
        graph: Any = _Tracer().trace(body)
    except Exception:  # of whatever kind: a model may ask of its input what it likes
        return body
    modules: dict[str, Any] = dict(body.named_modules())
    _take_off(graph, modules)
    calls = Counter(node.target for node in graph.nodes)
    for node in graph.nodes:
        convolution: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(convolution) in _CONVOLUTIONS and calls[node.target] == 1 and _pads_zeros(convolution):
            convolution.__class__ = OnePassConv2d
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _ADDITIONS:
            _add(graph, modules, node)
    for node in list(graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) in _ACTIVATIONS:
            _activate(graph, modules, node)
    for node in graph.nodes:
        if _is_convolution(node, modules):
            modules[str(node.target)].overwrites = _may_overwrite(node, modules)
    return fx.GraphModule(body, graph)


def all_in_one_pass(models: nn.ModuleList) -> None:
    """`in_one_pass` for each of a list, in place."""
    for index, model in enumerate(models):
        models[index] = in_one_pass(model)


class _Tracer(fx.Tracer):
    """Looks into everything but convolutions and norms, whose buffers would become constants."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_whole = isinstance(m, nn.Conv2d) or type(m) in _NORMS
        return is_whole or super().is_leaf_module(m, module_qualified_name)


def _take_off(graph: Any, modules: Mapping[str, Any]) -> None:
    """Leaves out the modules that give back what they are given."""
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _add(graph: Any, modules: Mapping[str, Any], node: Any) -> None:
    """Gives a sum of two maps to the convolution that makes the later of them, if it makes it for this alone."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
        return
    earlier, later = sorted(node.args)
    if earlier is later or not _is_free(later, modules):
        return
    with graph.inserting_before(node):
        joint = graph.call_module(later.target, (later.args[0], earlier))
    node.replace_all_uses_with(joint)
    graph.erase_node(node)
    graph.erase_node(later)


def _activate(graph: Any, modules: Mapping[str, Any], node: Any) -> None:
    """Gives an activation to the convolution, or to the sum, that it alone reads."""
    [given] = node.args
    if _is_convolution(given, modules) and len(given.users) == 1:
        convolution, wanted = modules[str(given.target)], _ACTIVATIONS[type(modules[node.target])]
        # After a sum oneDNN has ReLU alone.
        if convolution.activation == _NONE and (len(given.args) == 1 or wanted == _RELU):
            convolution.activation = wanted
            node.replace_all_uses_with(given)
            graph.erase_node(node)


def _may_overwrite(node: Any, modules: Mapping[str, Any]) -> bool:
    """Whether a convolution may put its sum where the other map lies.

    That is so of what a convolution has made, which is a memory of its own, when only convolutions read it before.
    """
    if len(node.args) == 1:
        return False
    _, other = node.args
    return _is_convolution(other, modules) and all(
        user is node or (user < node and _is_convolution(user, modules) and len(user.args) == 1) for user in other.users
    )


def _is_free(node: Any, modules: Mapping[str, Any]) -> bool:
    """Whether a node is a convolution of one map and nothing else, which one other node reads."""
    alone = _is_convolution(node, modules) and len(node.args) == len(node.users) == 1
    return alone and modules[str(node.target)].activation == _NONE


def _is_convolution(node: Any, modules: Mapping[str, Any]) -> bool:
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return called and isinstance(modules[str(node.target)], OnePassConv2d)


def _pads_zeros(convolution: nn.Conv2d) -> bool:
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


@lru_cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
