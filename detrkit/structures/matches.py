"""Which query answers which object."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from detrkit.layers import sent


@dataclass(frozen=True)
class Matches:
    """Which query answers which object, for every decoder layer.

    Each layer has the same number M of pairs: with one query an object, the sum over images (and groups) of min(N, T).
    """

    image: Tensor
    """[M] int64, the image of each pair (the same in every layer)"""
    query: Tensor
    """[Y, M] int64; a matcher's ascend within an image, a block's may answer for several objects each"""
    target: Tensor
    """[Y, M] int64, the object's place within its image"""
    weight: Tensor | None = None
    """[Y, M] how much each pair counts, where the matcher weighs them; None: 1"""
    teaches: Tensor | None = None
    """[Y, M] bool, whether the query learns the object's class; None: each does"""

    def to(self, device: torch.device) -> Matches:
        """The same on another device, without waiting for it."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Matches(**{name: sent(t, device) for name, t in tensors.items() if t is not None})

    def weighed(self, values: Tensor) -> Tensor:
        """Values [Y, M] of the pairs, times what these count."""
        return values if self.weight is None else values * self.weight

    def taught(self, like: Tensor) -> Tensor:
        """[Y, M] 1 for pairs whose class is learned, 0 for the others."""
        return like.new_ones(self.query.shape) if self.teaches is None else self.teaches.to(like.dtype)

    def marked(self, logits: Tensor, labels: Tensor) -> Tensor:
        """1 where one of logits [Y, B, N, K] is to be high, for a pair's label [Y, M] that is learned; 0 elsewhere."""
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        marks = torch.zeros_like(logits)
        if self.teaches is None:
            marks[layer, self.image, self.query, labels] = 1.0
            return marks
        _, images, queries, classes = logits.shape
        place = ((layer * images + self.image) * queries + self.query) * classes + labels
        return marks.flatten().scatter_reduce(0, place.flatten(), self.taught(logits).flatten(), "amax").view_as(logits)

    def take(self, predictions: Tensor) -> Tensor:
        """The matched rows of `predictions` [Y, B, N, ...]: [Y, M, ...]."""
        layer = torch.arange(len(predictions), device=predictions.device)[:, None]
        return predictions[layer, self.image, self.query]

    def take_targets(self, values: Tensor) -> Tensor:
        """The matched rows of padded truths [B, T, ...]: [Y, M, ...]."""
        return values[self.image, self.target]
