"""A detector and its losses as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.data import Batch
from detrkit.evaluation.evaluate import autocast
from detrkit.losses.base import BaseCriterion

AVERAGED = ("class_error",)  # numbers of the criterion that are not sums over objects


class Learner(nn.Module):
    """From images and truths to losses, so that whoever wraps it sees what the losses reach and what they do not."""

    def __init__(self, detector: nn.Module, criterion: BaseCriterion, device: torch.device, precision: str) -> None:
        super().__init__()
        self.detector, self.criterion = detector, criterion
        self.device, self.precision = device, precision

    def forward(self, batch: Batch, objects: Tensor, images: int) -> dict[str, Tensor]:
        """The losses of a batch, or of a piece of one with `images` images; see `BaseCriterion`."""
        with autocast(self.device, self.precision):
            output = self.detector(batch.images, batch.mask, batch.targets)
        return self.criterion(output, batch.targets, objects, images)
