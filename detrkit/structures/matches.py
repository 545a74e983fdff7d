"""Which query answers which object."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """Which query answers which object, for every decoder layer.

    Each layer has the same number M of pairs: the sum over images (and groups) of min(N, T).
    """

    image: Tensor
    """[M] int64, the image of each pair (the same in every layer)"""
    query: Tensor
    """[Y, M] int64, ascending within an image"""
    target: Tensor
    """[Y, M] int64, the object's place within its image"""
    weight: Tensor | None = None
    """[Y, M] how much each pair counts, where the matcher weighs them; None: 1"""

    def to(self, device: torch.device) -> Matches:
        """The same on another device, without waiting for it."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Matches(**{name: t.to(device, non_blocking=True) for name, t in tensors.items() if t is not None})

    def weighed(self, values: Tensor) -> Tensor:
        """Values [Y, M] of the pairs, times what these count."""
        return values if self.weight is None else values * self.weight

    def take(self, predictions: Tensor) -> Tensor:
        """The matched rows of `predictions` [Y, B, N, ...]: [Y, M, ...]."""
        layer = torch.arange(len(predictions), device=predictions.device)[:, None]
        return predictions[layer, self.image, self.query]

    def take_targets(self, values: Tensor) -> Tensor:
        """The matched rows of padded truths [B, T, ...]: [Y, M, ...]."""
        return values[self.image, self.target]
