"""The scale of a loss whose gradients are computed in float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FIRST, LARGEST = 2.0**16, 2.0**32
STEPS_TO_GROW = 2000


class LossScale:
    """What a loss is multiplied by before the backward pass, so that small gradients do not become 0 in float16.

    It doubles after 2000 finite gradients in a row and is halved by each that is not finite, as in mixed precision
    training (Micikevicius et al., 2018, section 3.2; PyTorch's `GradScaler`). In float32 and bfloat16 there is none. It
    stays on the device: nothing waits for it.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        wanted = precision == "fp16"
        self.value: Tensor | None = torch.full((), FIRST, device=device) if wanted else None
        """[] a power of two from 1 on; None for none"""
        self._sound = torch.zeros((), device=device)  # finite gradients in a row

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss [] times the scale."""
        return loss if self.value is None else loss * self.value

    def update(self, norm: Tensor) -> None:
        """Follow the norm [] of a step's gradient."""
        if self.value is None:
            return
        sound = norm.isfinite()
        self._sound = torch.where(sound, self._sound + 1, 0)
        factor = torch.where(sound, torch.where(self._sound == STEPS_TO_GROW, 2.0, 1.0), 0.5)
        self.value = (self.value * factor).clamp(1, LARGEST)
        self._sound = self._sound % STEPS_TO_GROW

    def numbers(self) -> dict[str, Tensor]:
        """What a step says of it: `loss_scale` [], or nothing."""
        return {} if self.value is None else {"loss_scale": self.value}

    def state(self) -> dict[str, Any]:
        """For the checkpoint; waits for the device."""
        return {} if self.value is None else {"value": self.value.item(), "sound": int(self._sound)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; one of a training without a scale changes nothing."""
        if self.value is not None and state:
            self.value.fill_(state["value"])
            self._sound.fill_(state["sound"])
