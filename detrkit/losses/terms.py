"""Loss terms: each gives one number a decoder layer, already divided by the number of objects."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detrkit.boxes import center_to_corners, overlaps
from detrkit.errors import UserError
from detrkit.losses.base import Loss
from detrkit.matching.costs import BoxForm, Weight, in_form
from detrkit.recipe import register
from detrkit.structures import Matches, Output, Targets

Alpha = Annotated[float, Field(ge=0, le=1)]
Gamma = Annotated[float, Field(ge=0, le=100)]
ExtraWeights = dict[str, Weight]


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss of each logit against a target in [0, 1] (RetinaNet, section 3; soft targets interpolate).

    (alpha t + (1 - alpha)(1 - t)) (1 - q)^gamma BCE(x, t) with q = p t + (1 - p)(1 - t).
    """
    p = logits.sigmoid()
    q = p * target + (1 - p) * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return balance * power(1 - q, gamma) * bce


def power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent of numbers from 0 on, with a finite gradient at 0 too, where an exponent below 1 has none.

    Sure predictions round to 0 and 1: a logit of 17 in float32.
    """
    if 0 < exponent < 1:
        base = base.clamp(min=torch.finfo(base.dtype).tiny)
    return base**exponent


def matched_places(matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the matched queries into [Y, B, N, ...]: layer [Y, 1], image [M], query [Y, M]."""
    layer = torch.arange(len(matches.query), device=matches.query.device)[:, None]
    return layer, matches.image, matches.query


@register("loss", "focal")
class FocalLoss(Loss):
    """Focal loss of all class logits, 1 at a matched query's class and 0 elsewhere (RetinaNet, section 3).

    -alpha (1 - p)^gamma ln p where the target is 1 and -(1 - alpha) p^gamma ln(1 - p) where it is 0, p the sigmoid of
    the logit; summed over B, N and K, over the number of objects.

    Args:
        weight: factor of the term.
        alpha, gamma: balance and focus.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        alpha: Alpha = 0.25,
        gamma: Gamma = 2.0,
        extra_weights: ExtraWeights | None = None,
    ):
        self.weight, self.alpha, self.gamma, self.extra_weights = weight, alpha, gamma, extra_weights or {}

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        target = matches.marked(output.logits, matches.take_targets(targets.labels))
        return focal_loss(output.logits, target, self.alpha, self.gamma).flatten(1).sum(1) / objects


@register("loss", "softmax")
class SoftmaxLoss(Loss):
    """Cross entropy over the classes and "no object", the last logit: a weighted mean over queries (DETR, section 3.2).

    Divided by the sum of weights, objects + background * (queries - objects), for the whole batch over all pieces and
    processes: the official code's number where there is one piece and one process, but for two rare batches. The
    normaliser is all that a piece knows of the others, and it counts objects, not matches, and at least one. So a batch
    without objects is divided by 1 - background too much, and one that has images with more objects than queries by
    1 - background too much for each object left over. Of several groups of queries the means are added up (and their
    sum is then shared out, as for every term). A query that answers for several objects (block "mixed") learns the one
    class that the block says, or of several the first by number.

    Needs `head.background = true`.

    Args:
        weight: factor of the term.
        background: weight of a query without an object.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    needs = ("background",)

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        background: Annotated[float, Field(gt=0)] = 0.1,
        extra_weights: ExtraWeights | None = None,
    ):
        self.weight, self.background, self.extra_weights = weight, background, extra_weights or {}

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        layers, _, queries, logits = output.logits.shape
        target = output.logits.new_full(output.logits.shape[:3], logits - 1, dtype=torch.int64).flatten(1)
        labels = matches.take_targets(targets.labels).to(torch.int64)
        if matches.teaches is not None:
            labels = labels.masked_fill(~matches.teaches, logits - 1)
        target = target.scatter_reduce(1, matches.image * queries + matches.query, labels, "amin")
        weights = output.logits.new_ones(logits)
        weights[-1] = self.background
        entropy = F.cross_entropy(output.logits.flatten(0, 2), target.flatten(), weights, reduction="none")
        without = (targets.images * (queries // output.groups) - objects).clamp(min=0)
        total = objects + self.background * without  # of one group, as every group's mean is
        return entropy.view(layers, -1).sum(1) / total


@register("loss", "l1")
class L1Loss(Loss):
    """L1 distance of matched boxes (DETR, section 3.1).

    |predicted - true| summed over pairs and their four numbers, over the number of objects.

    Args:
        weight: factor of the term.
        form: numbers compared: "center" (cx, cy, w, h), or "corners" (SAP-DETR).
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    weighs_pairs = True

    def __init__(self, *, weight: Weight = 5.0, form: BoxForm = "center", extra_weights: ExtraWeights | None = None):
        self.weight, self.form, self.extra_weights = weight, form, extra_weights or {}

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        predicted, truth = matches.take(output.boxes), matches.take_targets(targets.boxes)
        difference = in_form(predicted, self.form) - in_form(truth, self.form)
        return matches.weighed(difference.abs().sum(-1)).sum(1) / objects


@register("loss", "giou")
class GIoULoss(Loss):
    """1 - generalised IoU of matched boxes (DETR, section 3.1).

    GIoU = I / (U + eps) - (E - U) / (E + eps), E the area of the smallest box around both (Rezatofighi et al., CVPR
    2019); summed over pairs, over the number of objects.

    Args:
        weight: factor of the term.
        eps: added to union and enclosing area; 1e-6 in the DAB family, 0 in DETR.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    weighs_pairs = True

    def __init__(
        self,
        *,
        weight: Weight = 2.0,
        eps: Annotated[float, Field(ge=0)] = 1e-6,
        extra_weights: ExtraWeights | None = None,
    ):
        self.weight, self.eps, self.extra_weights = weight, eps, extra_weights or {}

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        return matches.weighed(1 - matched_overlaps(output, targets, matches, self.eps)[1]).sum(1) / objects


def matched_overlaps(output: Output, targets: Targets, matches: Matches, eps: float) -> tuple[Tensor, Tensor]:
    """IoU and GIoU [Y, M] of the matched pairs."""
    predicted, truth = matches.take(output.boxes), matches.take_targets(targets.boxes)
    return overlaps(center_to_corners(predicted), center_to_corners(truth), eps)


@register("loss", "objectness")
class ObjectnessLoss(Loss):
    """Focal loss of the objectness logits over all queries; the target is a matched pair's IoU, else 0 (SAP-DETR).

    A query that answers for several objects (block "mixed") has the largest of its pairs' IoUs.

    With a target t in between, alpha and the power are interpolated: (alpha t + (1 - alpha) (1 - t)) (1 - q)^gamma BCE,
    q = p t + (1 - p) (1 - t); summed over B and N, over the number of objects.

    Needs `head.objectness = true`.

    Args:
        weight: factor of the term.
        alpha, gamma: of the focal loss.
        eps: in the IoU's denominator.
        detach_target: whether the boxes are left out of this loss's gradient. The published weights were trained with
            False: the IoU target sends gradients into the boxes too.
        extra_weights: another factor in what is trained beside the answer, by name, such as { denoising = 1 }.
    """

    needs = ("objectness",)

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        alpha: Alpha = 0.25,
        gamma: Gamma = 2.0,
        eps: Annotated[float, Field(ge=0)] = 1e-6,
        detach_target: bool = False,
        extra_weights: ExtraWeights | None = None,
    ):
        self.weight, self.alpha, self.gamma = weight, alpha, gamma
        self.eps, self.detach_target, self.extra_weights = eps, detach_target, extra_weights or {}

    def applies_to(self, output: Output) -> bool:
        return output.objectness is not None

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        if output.objectness is None:
            raise UserError("losses: the objectness loss needs head.objectness = true")
        iou = matched_overlaps(output, targets, matches, self.eps)[0]
        logits = output.objectness.squeeze(-1)
        # Not index_put, which of a query's several objects takes any, and sends gradients into the boxes for all.
        best = (
            torch.zeros_like(logits)
            .flatten(1)
            .scatter_reduce(
                1,
                matches.image * logits.shape[2] + matches.query,
                iou.detach() if self.detach_target else iou,
                "amax",
                include_self=False,
            )
        )
        target = best.view_as(logits)
        return focal_loss(logits, target, self.alpha, self.gamma).flatten(1).sum(1) / objects
