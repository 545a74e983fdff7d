"""IoU-aware binary cross entropy (Align-DETR)."""

from __future__ import annotations

from torch import Tensor

from detrkit.losses.quality import Epsilon, QualityLoss, negative_entropy, positive_entropy
from detrkit.losses.terms import Alpha, ExtraWeights, Gamma, power
from detrkit.matching.costs import Weight
from detrkit.recipe import register
from detrkit.structures import Matches


@register("loss", "iou_aware")
class IoUAwareLoss(QualityLoss):
    """The target weighs score against IoU: t = p^alpha u^(1 - alpha) (IA-BCE of Align-DETR, section 3.2).

    BCE(x, t) at a matched query's class, t at least 0.01 and without gradient, and p^gamma BCE(x, 0) elsewhere; summed
    over B, N and K, over the number of objects. Where pairs count differently (matcher "many_to_one"), t is multiplied
    by what they count.

    Args:
        weight: factor of the term.
        alpha: share of the score in the target's exponent.
        gamma: focus of what is not matched.
        eps: in the IoU's denominator.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    weighs_pairs = True

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        alpha: Alpha = 0.25,
        gamma: Gamma = 2.0,
        eps: Epsilon = 1e-6,
        extra_weights: ExtraWeights | None = None,
    ):
        super().__init__(weight=weight, eps=eps, extra_weights=extra_weights)
        self.alpha, self.gamma = alpha, gamma

    def positive(self, logits: Tensor, iou: Tensor, matches: Matches, images: int) -> Tensor:
        target = logits.detach().sigmoid() ** self.alpha * iou ** (1 - self.alpha)
        return positive_entropy(logits, matches.weighed(target.clamp(min=0.01)))

    def negative(self, logits: Tensor) -> Tensor:
        return power(logits.sigmoid(), self.gamma) * negative_entropy(logits)
