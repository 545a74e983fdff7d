"""Varifocal loss (RT-DETR)."""

from __future__ import annotations

from torch import Tensor

from detrkit.losses.quality import Epsilon, QualityLoss, negative_entropy, positive_entropy
from detrkit.losses.terms import Alpha, ExtraWeights, Gamma
from detrkit.matching.costs import Weight
from detrkit.recipe import register
from detrkit.structures import Matches


@register("loss", "varifocal")
class VarifocalLoss(QualityLoss):
    """The target is the IoU u of the matched box, which also weighs the term (VarifocalNet, equation 2; RT-DETR).

    u BCE(x, u) at a matched query's class and alpha p^gamma BCE(x, 0) elsewhere, both weights without gradient;
    summed over B, N and K, over the number of objects.

    Args:
        weight: factor of the term.
        alpha, gamma: balance and focus of what is not matched.
        eps: in the IoU's denominator.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        alpha: Alpha = 0.75,
        gamma: Gamma = 2.0,
        eps: Epsilon = 0.0,
        extra_weights: ExtraWeights | None = None,
    ):
        super().__init__(weight=weight, eps=eps, extra_weights=extra_weights)
        self.alpha, self.gamma = alpha, gamma

    def positive(self, logits: Tensor, iou: Tensor, matches: Matches, images: int) -> Tensor:
        return iou * positive_entropy(logits, iou)

    def negative(self, logits: Tensor) -> Tensor:
        return self.alpha * logits.detach().sigmoid() ** self.gamma * negative_entropy(logits)
