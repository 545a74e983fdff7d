"""Weights that a form for detection casts for autocast once, where training casts them in every pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detrkit.onednn import Conv2d, Linear, is_watched, linear


class CastsOnce(nn.Module):
    """A module that may keep its weights as autocast wants them: float32 ones in bfloat16, beside themselves."""

    casts: dict[Any, Any] | None = None
    """by names: of which weights, and their casts; None where nothing is kept"""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.casts is None else self.__dict__ | {"casts": {}}

    def cast(self, *names: str) -> tuple[Any, ...]:
        """Parameters by their names, as autocast would cast them for an operation; None for one that is not there.

        Made when they are first wanted, and again when they have changed or gone elsewhere.
        """
        tensors = tuple(getattr(self, name) for name in names)
        device = next(t.device.type for t in tensors if t is not None)
        if self.casts is None or torch.compiler.is_compiling() or is_watched() or not torch.is_autocast_enabled(device):
            return tensors
        dtype = torch.get_autocast_dtype(device)
        of = (dtype, *(None if t is None else state_of(t) for t in tensors))
        if names not in self.casts or self.casts[names][0] != of:
            with torch.inference_mode(False):  # a gradient may be asked for through them later
                copies = (t if t is None or t.dtype != torch.float32 else t.detach().to(dtype) for t in tensors)
                self.casts[names] = (of, tuple(copies))
        return self.casts[names][1]


class _Linear(CastsOnce, Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, *self.cast("weight", "bias"))


class _Conv2d(CastsOnce, Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *self.cast("weight", "bias"))


_FORMS: dict[type, type] = {nn.Linear: _Linear, Linear: _Linear, nn.Conv2d: _Conv2d, Conv2d: _Conv2d}


def keep_casts(module: nn.Module) -> None:
    """Has the layers in a module, which is not to be trained, keep their casts: they change their class, in place.

    Those of a class of their own stay as they are, unless they are a `CastsOnce`.
    """
    for part in module.modules():
        if form := _FORMS.get(type(part)):
            part.__class__ = form
        if isinstance(part, CastsOnce):
            part.casts = {}


def state_of(tensor: Tensor) -> tuple[int, int]:
    """What differs when a tensor has been moved, or changed in place where PyTorch counts that."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
