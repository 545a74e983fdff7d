"""Whether what a training would write down is finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from detrkit.engine.ema import MovingAverage
from detrkit.errors import UserError
from detrkit.reading import not_finite


def may_help(precision: str) -> str:
    """What to try in a training that has diverged, computed in a precision ("fp32", "bf16" or "fp16")."""
    if precision == "fp32":
        return "A lower train.learning_rate or a longer train.warmup_steps may help."
    return "A lower train.learning_rate, a longer train.warmup_steps or train.precision=fp32 may help."


class NotFiniteError(UserError):
    """The loss, its gradient or what it trains was not a number any more."""


class Soundness:
    """Finds the tensors of a training that are not finite any more.

    Buffers that were not finite at the start (a part may keep a mask of -inf) are left alone.
    """

    def __init__(self, detector: nn.Module, average: MovingAverage | None, optimiser: torch.optim.Optimizer) -> None:
        self._detector, self._average, self._optimiser = detector, average, optimiser
        self._exempt = set(not_finite(dict(detector.named_buffers())))

    def faults(self) -> list[str]:
        """The names of the weights, averages and moments that are not finite; waits for the device."""
        return not_finite(dict(self._tensors()))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._detector.state_dict().items():
            if name not in self._exempt:
                yield name, tensor
        for name, tensor in self._average.module.state_dict().items() if self._average is not None else ():
            if name not in self._exempt:
                yield f"the average of {name}", tensor
        for group in self._optimiser.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                for key, value in self._optimiser.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        yield f"{key} of {name}", value
