"""Twins of loss terms: layer by layer, query by query, class by class."""

from __future__ import annotations

import torch

from detrkit.structures import Matches
from tests.twins.arithmetic import corners, iou_and_giou, sigmoid
from tests.twins.bench import Case, made
from tests.twins.costs import CLASSES, COUNTS, LAYERS, QUERIES, predictions, truths
from tests.twins.cross import numbers

PAIRS = [
    {(0, 1): 1, (0, 4): 0, (2, 0): 2, (2, 2): 0, (2, 3): 1},
    {(0, 0): 0, (0, 3): 1, (2, 1): 1, (2, 2): 2, (2, 4): 0},
]
"""For each layer the object of each (image, query) that has one."""
OBJECTS = 5


def scene():
    output = predictions()
    targets = truths()
    for layer, pairs in enumerate(PAIRS):  # some that fit well, some that do not meet
        for (b, n), t in list(pairs.items())[1:]:
            output.boxes[layer, b, n] = targets.boxes[b, t] + numbers(4, low=-0.08, high=0.08)
        (b, n), t = next(iter(pairs.items()))
        output.boxes[layer, b, n] = torch.tensor([0.05, 0.05, 0.08, 0.06])
    return {"output": output, "boxes": targets.boxes}


def matches() -> Matches:
    columns = [
        (b, *zip(*[(n, t) for (i, n), t in pairs.items() if i == b], strict=True)) for pairs in PAIRS for b in (0, 2)
    ]
    per_layer = len(columns) // LAYERS
    rows = [columns[layer * per_layer : (layer + 1) * per_layer] for layer in range(LAYERS)]
    return Matches(
        torch.tensor([b for b, queries, _ in rows[0] for _ in queries]),
        torch.tensor([[n for _, queries, _ in row for n in queries] for row in rows]),
        torch.tensor([[t for _, _, objects in row for t in objects] for row in rows]),
    )


def given(boxes):
    """The truths with these boxes, whose type is the predictions'."""
    targets = truths()
    return type(targets)(targets.labels, boxes, targets.counts, targets.images)


def cross_entropy(p, target):
    return -target * torch.log(p) - (1 - target) * torch.log(1 - p)


def every_class(positive, negative, quality_of=lambda iou, giou: iou):
    """A class loss: `positive(loss, p, quality, the image's best)` at a pair's class, `negative(loss, p)` elsewhere."""

    def layer_loss(loss, output, targets, layer):
        total = 0.0
        quality = {}
        for (b, n), t in PAIRS[layer].items():
            quality[b, n] = quality_of(*iou_and_giou(output.boxes[layer, b, n], targets.boxes[b, t], loss.eps)).detach()
        for b in range(len(COUNTS)):
            best = max((u for (i, _), u in quality.items() if i == b), default=None)
            for n in range(QUERIES):
                for k in range(CLASSES):
                    p = sigmoid(output.logits[layer, b, n, k])
                    if (b, n) in quality and k == targets.labels[b, PAIRS[layer][b, n]]:
                        total = total + positive(loss, p, quality[b, n], best)
                    else:
                        total = total + negative(loss, p)
        return total

    return layer_loss


def focal(loss, output, targets, layer):
    total = 0.0
    for b in range(len(COUNTS)):
        for n in range(QUERIES):
            for k in range(CLASSES):
                p, t = sigmoid(output.logits[layer, b, n, k]), PAIRS[layer].get((b, n))
                if t is not None and targets.labels[b, t] == k:
                    total = total - loss.alpha * (1 - p) ** loss.gamma * torch.log(p)
                else:
                    total = total - (1 - loss.alpha) * p**loss.gamma * torch.log(1 - p)
    return total


def softmax(loss, output, targets, layer):
    """A mean of cross entropies in which "no object", the last class, weighs less; times what `case` divides by."""
    total, weights = 0.0, 0.0
    for b in range(len(COUNTS)):
        for n in range(QUERIES):
            t = PAIRS[layer].get((b, n))
            weight = loss.background if t is None else 1.0
            powers = torch.exp(output.logits[layer, b, n])
            total = total - weight * torch.log(
                powers[CLASSES - 1 if t is None else targets.labels[b, t]] / powers.sum()
            )
            weights += weight
    return OBJECTS * total / weights


def every_pair(term):
    def layer_loss(loss, output, targets, layer):
        return sum(term(loss, output, layer, b, n, targets.boxes[b, t]) for (b, n), t in PAIRS[layer].items())

    return layer_loss


def l1(loss, output, layer, b, n, true):
    one, other = output.boxes[layer, b, n], true
    if loss.form == "corners":
        one, other = corners(one), corners(other)
    return sum(abs(x - y) for x, y in zip(one, other, strict=True))


def giou(loss, output, layer, b, n, true):
    return 1 - iou_and_giou(output.boxes[layer, b, n], true, loss.eps)[1]


def inner(loss, output, layer, b, n, true):
    x, y = output.points[layer, b, n]
    x0, y0, x1, y1 = corners(true)
    outside = max(x0 - x, y0 - y, x - x1, y - y1)
    if loss.form == "count":
        return torch.tensor(float(outside > 0), dtype=x.dtype)
    return outside if outside > 0 else 0 * outside


def objectness(loss, output, targets, layer):
    total = 0.0
    for b in range(len(COUNTS)):
        for n in range(QUERIES):
            p, t = sigmoid(output.objectness[layer, b, n, 0]), PAIRS[layer].get((b, n))
            target = 0.0 * p.detach()
            if t is not None:
                target = iou_and_giou(output.boxes[layer, b, n], targets.boxes[b, t], loss.eps)[0]
                target = target.detach() if loss.detach_target else target
            right = p * target + (1 - p) * (1 - target)
            balance = loss.alpha * target + (1 - loss.alpha) * (1 - target)
            total = total + balance * (1 - right) ** loss.gamma * cross_entropy(p, target)
    return total


varifocal = every_class(
    lambda loss, p, u, best: u * cross_entropy(p, u),
    lambda loss, p: loss.alpha * p.detach() ** loss.gamma * cross_entropy(p, 0.0),
)
matchability = every_class(
    lambda loss, p, u, best: cross_entropy(p, u**loss.gamma),
    lambda loss, p: loss.alpha * p.detach() ** loss.gamma * cross_entropy(p, 0.0),
)
iou_aware = every_class(
    lambda loss, p, u, best: cross_entropy(p, max(p.detach() ** loss.alpha * u ** (1 - loss.alpha), 0 * u + 0.01)),
    lambda loss, p: p**loss.gamma * cross_entropy(p, 0.0),
)
giou_aware = every_class(
    lambda loss, p, u, best: loss.alpha * abs(u - p) ** loss.gamma * cross_entropy(p, u),
    lambda loss, p: (1 - loss.alpha) * p**loss.gamma * cross_entropy(p, 0.0),
    lambda iou, giou: (giou + 1) / 2,
)

_quality_of_all = every_class(
    lambda loss, p, u, best: abs(u - p) ** loss.gamma * cross_entropy(p, u),
    lambda loss, p: p**loss.gamma * cross_entropy(p, 0.0),
)


def quality_focal(loss, output, targets, layer):
    total = _quality_of_all(loss, output, targets, layer)
    for b, count in enumerate(COUNTS):
        if loss.empty == "nothing" and not count:
            for x in output.logits[layer, b].flatten():
                total = total - sigmoid(x) ** loss.gamma * cross_entropy(sigmoid(x), 0.0)
    return total


def _position_supervised(loss, p, u, best):
    target = u**loss.power / (best**loss.power + 1e-8)
    return loss.alpha * abs(target - p) ** loss.gamma * cross_entropy(p, target)


position_supervised = every_class(
    _position_supervised, lambda loss, p: (1 - loss.alpha) * p**loss.gamma * cross_entropy(p, 0.0)
)


def case(name, twin, gradient=True, **options):
    """`twin` gives one layer's sum, still to be divided by the number of objects."""

    def run(loss, output, boxes):
        return loss(output, given(boxes), matches(), torch.tensor(float(OBJECTS), dtype=boxes.dtype))

    def all_layers(loss, output, boxes):
        return torch.stack([twin(loss, output, given(boxes), layer) / OBJECTS for layer in range(LAYERS)])

    def make():
        return made("loss", name, options)

    return Case("loss", name, options, make, scene, run, all_layers, has_gradient=gradient)


CASES = [
    case("focal", focal),
    case("focal", focal, alpha=0.4, gamma=1.5),
    case("softmax", softmax),
    case("softmax", softmax, background=0.4),
    case("l1", every_pair(l1)),
    case("l1", every_pair(l1), form="corners"),
    case("giou", every_pair(giou)),
    case("giou", every_pair(giou), eps=0.0),
    case("objectness", objectness),
    case("objectness", objectness, alpha=0.4, gamma=1.5, eps=0.0, detach_target=True),
    case("inner", every_pair(inner), gradient=False),
    case("inner", every_pair(inner), form="distance"),
    case("varifocal", varifocal),
    case("varifocal", varifocal, alpha=0.4, gamma=1.5, eps=1e-6),
    case("matchability", matchability),
    case("matchability", matchability, alpha=0.4, gamma=2.0, eps=1e-6),
    case("iou_aware", iou_aware),
    case("iou_aware", iou_aware, alpha=0.4, gamma=1.5, eps=0.0),
    case("giou_aware", giou_aware),
    case("giou_aware", giou_aware, alpha=0.4, gamma=1.5, eps=0.0),
    case("quality_focal", quality_focal),
    case("quality_focal", quality_focal, gamma=1.5, eps=1e-6, empty="nothing"),
    case("position_supervised", position_supervised),
    case("position_supervised", position_supervised, alpha=0.4, gamma=1.5, power=1.0, eps=0.0),
]
