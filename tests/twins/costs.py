"""Twins of matching costs: one query, one object, by hand."""

from __future__ import annotations

import torch

from detrkit.structures import Output, Targets
from tests.twins.arithmetic import corners, iou_and_giou, sigmoid
from tests.twins.bench import Case, made
from tests.twins.cross import numbers

LAYERS, COUNTS, QUERIES, CLASSES = 2, (2, 0, 3), 5, 3


def truths():
    """Of three images, of which one is empty."""
    torch.manual_seed(1)
    most = max(COUNTS)
    labels, boxes = torch.zeros(3, most, dtype=torch.int64), torch.tensor([0.5, 0.5, 1, 1]).double().repeat(3, most, 1)
    for image, count in enumerate(COUNTS):
        labels[image, :count] = torch.randint(0, CLASSES - 1, (count,))  # the last may be "no object"
        boxes[image, :count] = numbers(count, 4, low=0.25, high=0.6)
    return Targets(labels, boxes, COUNTS, len(COUNTS))


def predictions():
    torch.manual_seed(0)
    shape = (LAYERS, len(COUNTS), QUERIES)
    return Output(
        logits=2 * numbers(*shape, CLASSES),
        boxes=numbers(*shape, 4, low=0.2, high=0.6),
        points=numbers(*shape, 2, low=0.1, high=0.9),
        objectness=numbers(*shape, 1),
    )


def scene():
    return {"output": predictions(), "targets": truths()}


def every_pair(values):
    """The costs of an image's own objects, those of empty places left out."""
    return [values[layer][image][:, :count] for layer in range(LAYERS) for image, count in enumerate(COUNTS) if count]


def probability(output, targets, layer, b, n, t, with_objectness):
    p = sigmoid(output.logits[layer, b, n, targets.labels[b, t]])
    return p * sigmoid(output.objectness[layer, b, n, 0]) if with_objectness else p


def focal_of(cost, p):
    with_object = -cost.alpha * (1 - p) ** cost.gamma * torch.log(p + cost.log_eps)
    without = -(1 - cost.alpha) * p**cost.gamma * torch.log(1 - p + cost.log_eps)
    return with_object - without


def focal(cost, output, targets, layer, b, n, t):
    return focal_of(cost, probability(output, targets, layer, b, n, t, cost.objectness))


def softmax(cost, output, targets, layer, b, n, t):
    powers = torch.exp(output.logits[layer, b, n])
    return -powers[targets.labels[b, t]] / powers.sum()


def l1(cost, output, targets, layer, b, n, t):
    one, other = output.boxes[layer, b, n], targets.boxes[b, t]
    if cost.form == "corners":
        one, other = corners(one), corners(other)
    return sum(abs(x - y) for x, y in zip(one, other, strict=True))


def giou(cost, output, targets, layer, b, n, t):
    return -iou_and_giou(output.boxes[layer, b, n], targets.boxes[b, t], cost.eps)[1]


def inner(cost, output, targets, layer, b, n, t):
    x, y = output.points[layer, b, n]
    x0, y0, x1, y1 = corners(targets.boxes[b, t])
    return torch.tensor(0.0 if x0 <= x <= x1 and y0 <= y <= y1 else 1.0, dtype=torch.float64)


def position_modulated(cost, output, targets, layer, b, n, t):
    def fit(query, obj):
        return (iou_and_giou(output.boxes[layer, b, query], targets.boxes[b, obj], cost.eps)[1] + 1) / 2

    best = max(fit(query, obj) for query in range(QUERIES) for obj in range(COUNTS[b]))
    p = probability(output, targets, layer, b, n, t, cost.objectness)
    return focal_of(cost, p * (fit(n, t) / (best + 1e-8)) ** cost.power)


def high_order(cost, output, targets, layer, b, n, t):
    iou = iou_and_giou(output.boxes[layer, b, n], targets.boxes[b, t], cost.eps)[0]
    return -probability(output, targets, layer, b, n, t, cost.objectness) * iou**cost.power


def case(name, pair, **options):
    def run(cost, output, targets):
        return every_pair(cost(output, targets))

    def twin(cost, output, targets):
        return [
            torch.stack(
                [
                    torch.stack([pair(cost, output, targets, layer, b, n, t) for t in range(count)])
                    for n in range(QUERIES)
                ]
            )
            for layer in range(LAYERS)
            for b, count in enumerate(COUNTS)
            if count
        ]

    def make():
        return made("cost", name, options)

    # A match has no gradient: `HungarianMatcher.cost` takes none.
    return Case("cost", name, options, make, scene, run, twin, has_gradient=False)


CASES = [
    case("focal", focal),
    case("focal", focal, alpha=0.4, gamma=1.5, objectness=True, log_eps=1e-3),
    case("softmax", softmax),
    case("l1", l1),
    case("l1", l1, form="corners"),
    case("giou", giou),
    case("giou", giou, eps=0.0),
    case("inner", inner),
    case("high_order", high_order),
    case("high_order", high_order, power=2.0, eps=0.0, objectness=True),
    case("position_modulated", position_modulated),
    case("position_modulated", position_modulated, alpha=0.4, gamma=1.5, power=2.0, eps=0.0, objectness=True),
]
