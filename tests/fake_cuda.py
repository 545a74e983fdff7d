"""A CUDA device without memory: tensors there have a shape, a type and a device, and no values.

Torch's fake tensors refuse two devices in one operation, as a GPU does; an index on another device is refused here.
Products of two types are not. What is on the host is computed as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves

CUDA = torch.device("cuda", 0)
ATEN = torch.ops.aten
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)  # fake tensors do not look here


class _HostIsReal(TorchDispatchMode):
    """Within a FakeTensorMode: operations that have nothing to do with the device are the host's own."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in INDEXING and not _on_device(args[0]) and any(map(_on_device, args[1])):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if tree_any(_on_device, (args, kwargs)):
            return function(*args, **kwargs)
        with unset_fake_temporarily():
            return function(*args, **kwargs)


def _on_device(value) -> bool:
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == CUDA.type)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within it "cuda" can be used; what is brought to the host from there is zeros. No backward pass works."""

    def host(values: Tensor, *_, **__) -> Tensor:
        with unset_fake_temporarily():
            return torch.zeros(values.shape, dtype=values.dtype)

    def arriving(values: Tensor) -> mock.Mock:
        return mock.Mock(read=lambda: host(values))

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        _HostIsReal(),
        mock.patch("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.Tensor.cpu", host),
        mock.patch("torch.Tensor.pin_memory", lambda values: values),
        mock.patch("detrkit.blocks.mixed.Arriving", arriving),
        mock.patch("detrkit.blocks.dense.Arriving", arriving),
    ):
        yield


def to_cuda(module: nn.Module) -> nn.Module:
    """A module's parameters and buffers moved to the device, in place; call it within `fake_cuda`.

    `Module.to` swaps the data of its parameters, which cannot become another kind of tensor.
    """
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(value.detach().to(CUDA), requires_grad=value.requires_grad))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, value.to(CUDA))
    return module


def devices(values) -> set[str]:
    """Of all tensors in a tree."""
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
