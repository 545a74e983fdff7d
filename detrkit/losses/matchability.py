"""Matchability-aware loss (DEIM)."""

from __future__ import annotations

from torch import Tensor

from detrkit.losses.quality import Epsilon, QualityLoss, negative_entropy, positive_entropy
from detrkit.losses.terms import ExtraWeights, Gamma
from detrkit.matching.costs import Weight
from detrkit.recipe import register
from detrkit.structures import Matches


@register("loss", "matchability")
class MatchabilityLoss(QualityLoss):
    """The target is the matched box's IoU u to a power, and a pair of small IoU counts in full (DEIM, section 3.3).

    BCE(x, u^gamma) at a matched query's class and alpha p^gamma BCE(x, 0) elsewhere, p^gamma without gradient; summed
    over B, N and K, over the number of objects.

    Args:
        weight: factor of the term.
        alpha: weight of what is not matched; DEIM has none, which is 1.
        gamma: power of the IoU, and focus of what is not matched.
        eps: in the IoU's denominator.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        alpha: Weight = 1.0,
        gamma: Gamma = 1.5,
        eps: Epsilon = 0.0,
        extra_weights: ExtraWeights | None = None,
    ):
        super().__init__(weight=weight, eps=eps, extra_weights=extra_weights)
        self.alpha, self.gamma = alpha, gamma

    def positive(self, logits: Tensor, iou: Tensor, matches: Matches, images: int) -> Tensor:
        return positive_entropy(logits, iou**self.gamma)

    def negative(self, logits: Tensor) -> Tensor:
        return self.alpha * logits.detach().sigmoid() ** self.gamma * negative_entropy(logits)
