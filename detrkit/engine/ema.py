"""An exponential moving average of a detector's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from detrkit.reading import not_finite


class MovingAverage:
    """A copy of the detector that follows it slowly.

    The decay warms up as min(decay, (1 + n) / (10 + n)) with the n-th update, so that the random start is
    soon forgotten. Floating-point buffers (running statistics) are averaged as well; others, and those that are not
    finite at the start (a mask of -inf, which has no mean), are copied.

    Attributes:
        module: the averaged detector, in evaluation mode, without gradients
        updates: how many there were; belongs into the checkpoint, or the average would jump after a resume
    """

    def __init__(self, detector: nn.Module, *, decay: float, updates: int = 0) -> None:
        self.module = copy.deepcopy(detector).eval().requires_grad_(False)
        self.decay = decay
        self.updates = updates
        # Shared modules are listed once; so both copies of a detector give the same ones.
        both = list(zip(self.module.parameters(), detector.parameters(), strict=True))
        self._averaged = [pair for pair in both if pair[0].is_floating_point()]
        self._copied = [pair for pair in both if not pair[0].is_floating_point()]
        exempt = set(not_finite(dict(detector.named_buffers())))
        self._buffers = [
            (mine, theirs, name, f"{prefix}.{name}".removeprefix(".") not in exempt)
            for mine, (prefix, theirs) in zip(self.module.modules(), detector.named_modules(), strict=True)
            for name in theirs._buffers
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the detector's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, copied = list[tuple[Tensor, Tensor]](self._averaged), list[tuple[Tensor, Tensor]](self._copied)
        for mine, theirs, name, is_averaged in self._buffers:
            # Looked up anew: a module may assign another tensor in place of one.
            own, other = mine._buffers[name], theirs._buffers[name]
            if own is None or other is None or own.shape != other.shape:
                mine._buffers[name] = None if other is None else other.clone()
            else:
                (averaged if is_averaged and other.is_floating_point() else copied).append((own, other))
        averages, sources = zip(*averaged, strict=True)
        torch._foreach_lerp_(averages, sources, 1 - decay)
        for to, value in copied:
            to.copy_(value)
        self.updates += 1
