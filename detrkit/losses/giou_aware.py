"""GIoU-aware class loss (Rank-DETR)."""

from __future__ import annotations

from torch import Tensor

from detrkit.losses.quality import Epsilon, QualityLoss, negative_entropy, positive_entropy
from detrkit.losses.terms import Alpha, ExtraWeights, Gamma, power
from detrkit.matching.costs import Weight
from detrkit.recipe import register
from detrkit.structures import Matches


@register("loss", "giou_aware")
class GIoUAwareLoss(QualityLoss):
    """The target is the matched box's GIoU, brought to [0, 1]: t = (GIoU + 1) / 2 (Rank-DETR, section 3.3).

    alpha |t - p|^gamma BCE(x, t) at a matched query's class and (1 - alpha) p^gamma BCE(x, 0) elsewhere; summed over
    B, N and K, over the number of objects. Rank-DETR trains the encoder's proposals by the focal loss instead: two
    losses say so, each with a weight of 0 where the other trains.

    Args:
        weight: factor of the term.
        alpha, gamma: of the focal loss.
        eps: in the GIoU's denominators.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    def __init__(
        self,
        *,
        weight: Weight = 2.0,
        alpha: Alpha = 0.25,
        gamma: Gamma = 2.0,
        eps: Epsilon = 1e-6,
        extra_weights: ExtraWeights | None = None,
    ):
        super().__init__(weight=weight, eps=eps, extra_weights=extra_weights)
        self.alpha, self.gamma = alpha, gamma

    def quality(self, iou: Tensor, giou: Tensor) -> Tensor:
        return (giou.clamp(min=-1) + 1) / 2  # rounding passes -1

    def positive(self, logits: Tensor, iou: Tensor, matches: Matches, images: int) -> Tensor:
        return self.alpha * power((iou - logits.sigmoid()).abs(), self.gamma) * positive_entropy(logits, iou)

    def negative(self, logits: Tensor) -> Tensor:
        return (1 - self.alpha) * power(logits.sigmoid(), self.gamma) * negative_entropy(logits)
