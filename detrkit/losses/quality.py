"""What losses have in common whose target for a matched query's class is the quality of its box."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detrkit.losses.base import Loss
from detrkit.losses.terms import ExtraWeights, matched_overlaps, matched_places
from detrkit.structures import Matches, Output, Targets

Epsilon = Annotated[float, Field(ge=0, le=1e-3)]


def positive_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of logits against targets in [0, 1]: -t ln p - (1 - t) ln(1 - p)."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def negative_entropy(logits: Tensor) -> Tensor:
    """The same where the target is 0: -ln(1 - p)."""
    return F.softplus(logits)


class QualityLoss(Loss):
    """A class loss with `positive` at each matched query's class, `negative` elsewhere, over the number of objects.

    The target comes from the IoU of the pair (or what `quality` says), and no gradient of it reaches the boxes.

    Args:
        weight: factor of the term.
        eps: in the IoU's denominator.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    def __init__(self, *, weight: float, eps: float, extra_weights: ExtraWeights | None = None):
        self.weight, self.eps, self.extra_weights = weight, eps, extra_weights or {}

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        labels = matches.take_targets(targets.labels)
        quality = self.quality(*matched_overlaps(output, targets, matches, self.eps)).detach()
        matched = matches.marked(output.logits, labels) > 0
        negative = self.negative(output.logits).masked_fill(matched, 0.0)
        logits = output.logits[(*matched_places(matches), labels)]
        positive = matches.taught(logits) * self.positive(logits, quality, matches, len(targets.counts))
        return (negative.flatten(1).sum(1) + positive.sum(1)) / objects

    def quality(self, iou: Tensor, giou: Tensor) -> Tensor:
        """What a matched box is worth [Y, M], in [0, 1], by its IoU and GIoU."""
        return iou

    @abstractmethod
    def positive(self, logits: Tensor, iou: Tensor, matches: Matches, images: int) -> Tensor:
        """The loss [Y, M] of the matched queries' class logits [Y, M], whose boxes have that quality [Y, M]."""

    @abstractmethod
    def negative(self, logits: Tensor) -> Tensor:
        """The loss of logits, each as if it were to be 0."""
