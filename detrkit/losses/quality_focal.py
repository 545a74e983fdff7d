"""Quality focal loss (Generalized Focal Loss), with task-aligned targets where pairs have weights (DDQ)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from detrkit.layers import sent
from detrkit.losses.quality import Epsilon, QualityLoss, negative_entropy, positive_entropy
from detrkit.losses.terms import ExtraWeights, Gamma, power
from detrkit.matching.costs import Weight
from detrkit.recipe import register
from detrkit.structures import SILENT, Matches, Output, Targets


@register("loss", "quality_focal")
class QualityFocalLoss(QualityLoss):
    """The target t is what a pair counts, or the IoU of its box where all pairs count alike (Li et al., "Generalized
    Focal Loss", NeurIPS 2020, section 3.2).

    |t - p|^gamma BCE(x, t) at a matched query's class, p^gamma BCE(x, 0) elsewhere; summed over B, N and K, over the
    number of objects (or the sum of t: block "dense").

    Args:
        weight: factor of the term.
        gamma: focus.
        eps: in the IoU's denominator.
        empty: what images without objects teach: that there is nothing ("background"), or "nothing" at all (DDQ,
            official code).
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    weighs_pairs = True

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        gamma: Gamma = 2.0,
        eps: Epsilon = 0.0,
        empty: Literal["background", "nothing"] = "background",
        extra_weights: ExtraWeights | None = None,
    ):
        super().__init__(weight=weight, eps=eps, extra_weights=extra_weights)
        self.gamma, self.empty = gamma, empty

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        if self.empty == "nothing" and not all(targets.counts):
            filled = sent(torch.tensor([count > 0 for count in targets.counts]), output.logits.device)[:, None, None]
            output = replace(output, logits=output.logits.masked_fill(~filled, SILENT))
        return super().__call__(output, targets, matches, objects)

    def positive(self, logits: Tensor, iou: Tensor, matches: Matches, images: int) -> Tensor:
        target = iou if matches.weight is None else matches.weight
        return power((target - logits.sigmoid()).abs(), self.gamma) * positive_entropy(logits, target)

    def negative(self, logits: Tensor) -> Tensor:
        return power(logits.sigmoid(), self.gamma) * negative_entropy(logits)
