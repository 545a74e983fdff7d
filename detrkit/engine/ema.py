"""An exponential moving average of a detector's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """A copy of the detector that follows it slowly.

    The decay warms up as min(decay, (1 + n) / (10 + n)) with the n-th update, so that the random start is
    soon forgotten. Floating-point buffers (running statistics) are averaged as well, others are copied.

    Attributes:
        module: the averaged detector, in evaluation mode, without gradients
        updates: how many there were; belongs into the checkpoint, or the average would jump after a resume
    """

    def __init__(self, detector: nn.Module, *, decay: float, updates: int = 0) -> None:
        self.module = copy.deepcopy(detector).eval().requires_grad_(False)
        self.decay = decay
        self.updates = updates
        mine, theirs = _tensors(self.module), _tensors(detector)
        floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        self._averages = [mine[name] for name in floats]
        self._sources = [theirs[name] for name in floats]
        self._copies = [(mine[name], theirs[name]) for name in mine if name not in set(floats)]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the detector's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)
        for mine, theirs in self._copies:
            mine.copy_(theirs)
        self.updates += 1


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    # Shared modules are listed once; so both copies of a detector give the same names.
    return dict(module.named_parameters()) | dict(module.named_buffers())
