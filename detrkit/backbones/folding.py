"""Frozen norms folded into the convolutions before them: a scale of weights and a bias, no work on feature maps."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops.misc import FrozenBatchNorm2d

from detrkit.backbones.needs import trial_sizes
from detrkit.onednn import Conv2d


class FoldedConv2d(Conv2d):
    """A convolution that does the work of the frozen norm after it: with W * s and b * s + t for W and b.

    s and t are worked out of the norm's buffers in every pass, so that weights may be loaded and averaged at any time.
    Gradients pass to W; names in a state dict are those of a convolution and a norm.
    """

    norm: tuple[Any]
    """the frozen norm; in a tuple, since it is registered where it stands in the model"""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.folded())

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights [C, ...] and bias [C] with the norm in them."""
        [norm] = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        centre = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        return self.weight * scale[:, None, None, None], norm.bias - centre * scale


class FoldedConv2dSame(FoldedConv2d):
    """The same for a convolution that pads by the size of its input, as TensorFlow's do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)))


class FoldedNorm(FrozenBatchNorm2d):
    """What is left of a norm that a convolution has done: its buffers."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FoldedNormAct(FrozenBatchNormAct2d):
    """The same for a norm that has an activation in it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


class _OneRead(FrozenBatchNorm2d):
    """What stands for a frozen norm where only its reading counts: one operation instead of ten."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class _OneReadAct(FrozenBatchNormAct2d):
    """The same for a norm that has an activation in it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x.clone()))


_CONVOLUTIONS: dict[type, type] = {nn.Conv2d: FoldedConv2d, Conv2d: FoldedConv2d, Conv2dSame: FoldedConv2dSame}
_NORMS: dict[type, type] = {FrozenBatchNorm2d: FoldedNorm, FrozenBatchNormAct2d: FoldedNormAct}
_ONE_READ: dict[type, type] = {FrozenBatchNorm2d: _OneRead, FrozenBatchNormAct2d: _OneReadAct}
_PLAIN = {folded: plain for plain, folded in _CONVOLUTIONS.items()}


def fold_frozen_norms(body: nn.Module, multiple: int) -> int:
    """Folds every frozen norm of a model that can be, in place; how many they are.

    A norm is folded if it normalises what a convolution made and nobody else reads that: see `foldable`.

    Args:
        body: a model of images [B, 3, H, W], whole multiples of `multiple` pixels.
    """
    if not any(type(module) in _NORMS for module in body.modules()):
        return 0
    pairs = foldable(body, multiple)
    fold(body, pairs)
    return len(pairs)


def fold(body: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Folds these frozen norms into these convolutions, in place: (convolution, norm) by their names, of `foldable`.

    Modules stay the same objects and change their class, so that hooks and other references to them hold.
    """
    modules = dict(body.named_modules())
    for convolution, norm in ((modules[a], modules[b]) for a, b in pairs):
        convolution.__class__ = _CONVOLUTIONS[type(convolution)]
        norm.__class__ = _NORMS[type(norm)]
        convolution.norm = (norm,)


def fold_for_good(body: nn.Module) -> None:
    """Puts folded norms into the weights themselves, in place: nothing is left to do in a pass, nor to train."""
    for module in body.modules():
        if isinstance(module, FoldedConv2d):
            with torch.no_grad():
                weight, bias = module.folded()
            module.weight, module.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
            del module.norm
            module.__class__ = _PLAIN[type(module)]


def foldable(body: nn.Module, multiple: int) -> list[tuple[str, str]]:
    """The names of convolutions and of the frozen norms that alone read their output, found by trying the model.

    Two passes on torch's meta device, at two sizes, one in training mode: a pair is taken if both ran once in each, the
    norm was given the very tensor that the convolution put out, and that tensor's memory was read by one operation
    in all and is no output of the model. So no family's layout needs to be known.
    """
    model = _on_meta(body)
    found = []
    dtype = next(parameter.dtype for parameter in body.parameters())
    for training, size in zip((True, False), trial_sizes(multiple), strict=True):
        trial = _Trial(model.train(training))
        found.append(trial.pairs(torch.zeros(2, 3, *size, device="meta", dtype=dtype)))
    return [pair for pair in found[0] if pair in found[1]]


class _Trial(TorchDispatchMode):
    """Follows who reads the outputs of convolutions in one pass of a model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.calls: Counter[str] = Counter()
        self.reads: Counter[int] = Counter()
        """by the storage of a convolution's output"""
        self.made: dict[int, tuple[str, Tensor]] = {}
        """by the same: the convolution, and its output, which is kept so that no other takes the place"""
        self.followed: list[tuple[str, str, int]] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def pairs(self, images: Tensor) -> list[tuple[str, str]]:
        """Those that fold, by their names, for images [B, 3, H, W]."""
        handles = []
        for name, module in self.model.named_modules():
            if type(module) in _CONVOLUTIONS:
                handles.append(module.register_forward_hook(lambda _, __, out, name=name: self._convolved(name, out)))
            if type(module) in _ONE_READ.values():
                handles.append(module.register_forward_pre_hook(lambda _, given, name=name: self._norms(name, *given)))
        try:
            with self:
                returned = set(_storages(self.model(images)))
        finally:
            for handle in handles:
                handle.remove()
        return [
            (convolution, norm)
            for convolution, norm, key in self.followed
            if self.calls[convolution] == self.calls[norm] == self.reads[key] == 1 and key not in returned
        ]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.reads.update(set(_storages((args, kwargs))))
        return func(*args, **(kwargs or {}))

    def _convolved(self, name: str, output: Tensor) -> None:
        self.calls[name] += 1
        self.made[_storage(output)] = (name, output)
        self.reads[_storage(output)] = 0  # what was counted was another's, whose place it took

    def _norms(self, name: str, given: Tensor) -> None:
        self.calls[name] += 1
        convolution, output = self.made.get(_storage(given), ("", None))
        if output is given:
            self.followed.append((convolution, name, _storage(given)))


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy that has shapes and no memory, and whose frozen norms do no more than read."""
    tensors = (*model.parameters(), *model.buffers())
    found = copy.deepcopy(model, {id(t): t.detach().to("meta") for t in tensors})
    for module in found.modules():
        module.__class__ = _ONE_READ.get(type(module), type(module))
    return found


def _storages(values: Any) -> list[int]:
    return [_storage(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    """What is the same for two tensors that share their memory, on any device."""
    return tensor.untyped_storage()._cdata
