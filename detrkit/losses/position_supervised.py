"""Position-supervised loss (Stable-DINO)."""

from __future__ import annotations

from torch import Tensor

from detrkit.losses.quality import Epsilon, QualityLoss, negative_entropy, positive_entropy
from detrkit.losses.terms import Alpha, ExtraWeights, Gamma, power
from detrkit.matching.costs import Weight
from detrkit.recipe import register
from detrkit.structures import Matches


@register("loss", "position_supervised")
class PositionSupervisedLoss(QualityLoss):
    """The target is the matched box's IoU u to a power, and 1 for an image's best box (Stable-DINO, section 3.2).

    t = u^power, divided by the image's largest. alpha |t - p|^gamma BCE(x, t) at a matched query's class and
    (1 - alpha) p^gamma BCE(x, 0) elsewhere; summed over B, N and K, over the number of objects. An image's largest is
    taken within a decoder layer, over all its pairs: in denoising, over all repetitions (block "denoising" hands over
    its pairs as if they were of one image, which then share one largest).

    Args:
        weight: factor of the term; soft targets give small gradients, hence the 6.
        alpha, gamma: of the focal loss.
        power: of the IoU.
        eps: in the IoU's denominator.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    def __init__(
        self,
        *,
        weight: Weight = 6.0,
        alpha: Alpha = 0.25,
        gamma: Gamma = 2.0,
        power: Gamma = 2.0,
        eps: Epsilon = 1e-6,
        extra_weights: ExtraWeights | None = None,
    ):
        super().__init__(weight=weight, eps=eps, extra_weights=extra_weights)
        self.alpha, self.gamma, self.power = alpha, gamma, power

    def positive(self, logits: Tensor, iou: Tensor, matches: Matches, images: int) -> Tensor:
        quality = iou**self.power
        image = matches.image.expand_as(quality)
        largest = quality.new_zeros(len(quality), images).scatter_reduce(1, image, quality, "amax")
        target = quality * (1 / (largest + 1e-8)).clamp(min=1).gather(1, image)
        focus = power((target - logits.sigmoid()).abs(), self.gamma)
        return self.alpha * focus * positive_entropy(logits, target)

    def negative(self, logits: Tensor) -> Tensor:
        return (1 - self.alpha) * power(logits.sigmoid(), self.gamma) * negative_entropy(logits)
