"""Costs, assignment and losses against loops over images, queries and objects."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

import detrkit
from detrkit.errors import UserError
from detrkit.losses.criterion import Criterion
from detrkit.losses.terms import FocalLoss, GIoULoss, L1Loss, ObjectnessLoss, focal_loss
from detrkit.losses.truths import check_truths
from detrkit.matching.costs import FocalCost, GIoUCost, L1Cost
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.sap.inner import InnerCost, InnerLoss, inner_distance
from detrkit.structures import Matches, Output, Targets

LAYERS, QUERIES, CLASSES = 2, 5, 3


def scene(counts=(2, 0, 3), seed=0, queries=QUERIES):
    torch.manual_seed(seed)
    shape = (LAYERS, len(counts), queries)
    output = Output(
        logits=torch.randn(*shape, CLASSES).double().requires_grad_(),
        boxes=(torch.rand(*shape, 4) * 0.4 + 0.2).double().requires_grad_(),
        points=torch.rand(*shape, 2).double(),
        objectness=torch.randn(*shape, 1).double().requires_grad_(),
    )
    targets = [{"labels": torch.randint(0, CLASSES, (n,)), "boxes": (torch.rand(n, 4) * 0.4 + 0.3)} for n in counts]
    return output, targets


def matcher(*costs):
    return HungarianMatcher(costs={str(i): lambda cost=cost: cost for i, cost in enumerate(costs)})


ALL_COSTS = (
    FocalCost(weight=2.0, objectness=True),
    L1Cost(weight=5.0, form="corners"),
    GIoUCost(weight=2.0),
    InnerCost(),
)


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def cost_by_hand(output, target, layer, image, query, obj):
    p = torch.sigmoid(output.logits[layer, image, query, target["labels"][obj]]).item()
    p *= torch.sigmoid(output.objectness[layer, image, query, 0]).item()
    focal = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    a, b = corners(output.boxes[layer, image, query].tolist()), corners(target["boxes"][obj].tolist())
    l1 = sum(abs(u - v) for u, v in zip(a, b, strict=True))
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    giou = inter / (union + 1e-6) - (hull - union) / (hull + 1e-6)
    x, y = output.points[layer, image, query].tolist()
    outside = not (b[0] <= x <= b[2] and b[1] <= y <= b[3])
    return 2 * focal + 5 * l1 - 2 * giou + 9999 * outside


def test_costs_by_hand():
    output, targets = scene()
    cost = matcher(*ALL_COSTS).cost(output, Targets.pad(targets, torch.float64))
    for layer, image, query in itertools.product(range(LAYERS), range(3), range(QUERIES)):
        for obj in range(len(targets[image]["labels"])):
            expected = cost_by_hand(output, targets[image], layer, image, query, obj)
            assert cost[layer, image, query, obj].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("counts", [(2, 0, 3), (1,), (0, 4), (7, 2)])  # 7 objects for 5 queries
def test_assignment_is_the_cheapest(counts):
    output, targets = scene(counts)
    made = matcher(*ALL_COSTS)
    padded = Targets.pad(targets, torch.float64)
    cost, matches = made.cost(output, padded), made(output, padded)
    for layer, (image, count) in itertools.product(range(LAYERS), enumerate(counts)):
        here = matches.image == image
        queries, objects = matches.query[layer, here].tolist(), matches.target[layer, here].tolist()
        assert len(set(queries)) == len(set(objects)) == len(queries) == min(QUERIES, count)
        assert queries == sorted(queries)
        found = sum(cost[layer, image, q, t].item() for q, t in zip(queries, objects, strict=True))
        if count <= QUERIES:
            every = itertools.permutations(range(QUERIES), count)
            best = min(sum(cost[layer, image, q, t].item() for t, q in enumerate(p)) for p in every)
            assert found == pytest.approx(best)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_cost_that_is_not_finite_is_the_worst_and_is_counted(bad):
    made = matcher(L1Cost())
    cost = np.array([[bad, 1.0], [2.0, 9999.0], [50.0, 3.0]])
    queries, objects = made.assign(cost)
    assert list(zip(queries, objects, strict=True)) == [(0, 1), (1, 0)]
    assert made.bad_costs == 1
    queries, objects = made.assign(np.array([[bad, 0.0], [5.0, 0.0]]))  # worse than the worst that is a number
    assert list(zip(queries, objects, strict=True)) == [(0, 1), (1, 0)]
    assert made.bad_costs == 2


@pytest.mark.parametrize("name", ["focal", "position_modulated", "high_order", "l1", "giou"])
def test_a_broken_box_is_no_other_query_s_affair(name):
    output, targets = scene()
    padded, cost = Targets.pad(targets, torch.float64), detrkit.part("cost", name)()
    sound = cost(output, padded)
    boxes = output.boxes.detach().clone()
    boxes[1, 0, 3] = torch.nan
    found = cost(replace(output, boxes=boxes), padded)
    others = padded.filled[None, :, None].repeat(LAYERS, 1, QUERIES, 1)
    others[1, 0, 3] = False
    if name == "position_modulated":  # the broken box may have been the best one of its image
        assert found[others].isfinite().all()
        others[1, 0] = False
    assert torch.equal(found[others], sound[others])


def test_costs_that_are_all_bad_still_give_an_assignment():
    made = matcher(L1Cost())
    queries, _ = made.assign(np.full((4, 2), np.nan))
    assert len(queries) == 2
    assert made.bad_costs == 8


def test_no_objects_at_all():
    output, targets = scene((0, 0))
    made = criterion()
    losses = made(output, targets)
    assert losses["box"] == losses["giou"] == losses["inner"] == 0
    losses["total"].backward()
    assert output.logits.grad.abs().sum() > 0
    assert (output.boxes.grad == 0).all()


def criterion():
    losses = {
        "class": FocalLoss(weight=1.0),
        "box": L1Loss(weight=5.0, form="corners"),
        "giou": GIoULoss(weight=2.0),
        "objectness": ObjectnessLoss(weight=1.0),
        "inner": InnerLoss(weight=2.0),
    }
    return Criterion(matcher=matcher(*ALL_COSTS), losses=losses)


def test_losses_by_hand():
    output, targets = scene()
    made = criterion()
    losses = made(output, targets)
    matches = made.matcher(output, Targets.pad(targets, torch.float64))
    objects = sum(len(t["labels"]) for t in targets)
    total = 0.0
    for layer in range(LAYERS):
        hot = torch.zeros(3, QUERIES, CLASSES).double()
        box = giou = inner = 0.0
        for image, query, obj in zip(matches.image, matches.query[layer], matches.target[layer], strict=True):
            target = targets[image]
            hot[image, query, target["labels"][obj]] = 1
            a = corners(output.boxes[layer, image, query].tolist())
            b = corners(target["boxes"][obj].tolist())
            box += sum(abs(u - v) for u, v in zip(a, b, strict=True))
            rest = cost_by_hand(output, target, layer, image, query, obj)
            inner += rest > 5000
            p = torch.sigmoid(output.logits[layer, image, query, target["labels"][obj]]).item()
            p *= torch.sigmoid(output.objectness[layer, image, query, 0]).item()
            focal = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
            value = -(rest - 2 * focal - 9999 * (rest > 5000)) / 2
            giou += 1 - (value + 2.5 * sum(abs(u - v) for u, v in zip(a, b, strict=True)))
        suffix = f".{layer}" if layer + 1 < LAYERS else ""
        expected_class = sigmoid_focal_loss(output.logits[layer], hot, 0.25, 2.0, "sum") / objects
        assert losses["class" + suffix].item() == pytest.approx(expected_class.item())
        assert losses["box" + suffix].item() == pytest.approx(box / objects, rel=1e-6)
        assert losses["giou" + suffix].item() == pytest.approx(giou / objects, rel=1e-5)
        assert losses["inner" + suffix].item() == pytest.approx(inner / objects)
        parts = {name: losses[name + suffix] for name in made.losses}
        total += sum(made.losses[name].weight * value for name, value in parts.items())
    assert losses["total"].item() == pytest.approx(float(total))
    assert losses["total"].dtype == torch.float64


def test_the_iou_target_sends_gradients_into_boxes_only_where_it_is_not_detached():
    for detach in (False, True):
        output, targets = scene()
        made = Criterion(matcher=matcher(*ALL_COSTS), losses={"o": ObjectnessLoss(detach_target=detach)})
        made(output, targets)["total"].backward()
        assert (output.boxes.grad is None) == detach


@given(st.floats(-20, 20), st.floats(0, 1))
def test_focal_loss_is_finite_and_not_negative(logit, target):
    value = focal_loss(torch.tensor(logit), torch.tensor(target), 0.25, 2.0).item()
    assert math.isfinite(value)
    assert value >= 0


@given(st.tuples(*[st.floats(0, 1)] * 6))
def test_inner_distance_is_negative_only_outside(numbers):
    x, y, *box = numbers
    a, b = sorted(box[:2]), sorted(box[2:])
    distance = inner_distance(torch.tensor([x, y]), torch.tensor([a[0], b[0], a[1], b[1]])).item()
    x, y = np.float32(x), np.float32(y)
    inside = np.float32(a[0]) <= x <= np.float32(a[1]) and np.float32(b[0]) <= y <= np.float32(b[1])
    assert (distance >= 0) == inside


def test_parts_that_do_not_go_together_say_so():
    output, targets = scene()
    bare = Output(logits=output.logits, boxes=output.boxes)
    with pytest.raises(UserError, match=r"needs head.objectness = true"):
        matcher(FocalCost(objectness=True))(bare, Targets.pad(targets, torch.float64))
    with pytest.raises(UserError, match="geometry that predicts points"):
        matcher(InnerCost())(bare, Targets.pad(targets, torch.float64))


def test_published_weights_reach_the_criterion():
    recipe = detrkit.load_recipe("sap_detr_r50_50ep")
    made = detrkit.build_criterion(recipe)
    assert {name: loss.weight for name, loss in made.losses.items()} == {
        "class": 1,
        "box": 5,
        "giou": 2,
        "objectness": 1,
        "inner": 2,
    }
    assert {name: cost.weight for name, cost in made.matcher.costs.items()} == {
        "class": 2,
        "box": 5,
        "giou": 2,
        "inner": 9999,
    }


LABELS = torch.tensor([[0, 6, 4], [3, -2, 1]])  # each with one among others that is out of range


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda targets: targets.pop(), r"2 targets for a batch of 3 images"),
        (
            lambda targets: targets[1].pop("labels"),
            r"targets\[1\] has no 'labels'; a target holds boxes \[T, 4\]",
        ),
        (lambda targets: targets[0].update(labels=torch.tensor([1])), r"targets\[0\] has 1 labels and 2 boxes"),
        (lambda targets: targets[2]["labels"].fill_(7), r"targets\[2\] has the label 7; labels are 0 to 4"),
        (lambda targets: targets[2]["labels"].fill_(5), r"targets\[2\] has the label 5; labels are 0 to 4"),
        (lambda targets: targets[2]["boxes"].fill_(2.5), r"targets\[2\] has a box with 2\.5 in it"),
        (lambda targets: targets[2]["boxes"].fill_(-2.5), r"targets\[2\] has a box with 2\.5 in it"),
        (lambda targets: targets[2]["boxes"][1, 2].fill_(2.5), r"targets\[2\] has a box with 2\.5 in it"),
        (lambda targets: targets[2]["labels"].fill_(-1), r"targets\[2\] has the label -1; labels are 0 to 4"),
        (lambda targets: targets[2]["labels"].copy_(LABELS[0]), r"targets\[2\] has the label 6; labels are 0 to 4"),
        (lambda targets: targets[2]["labels"].copy_(LABELS[1]), r"targets\[2\] has the label -2; labels are 0 to 4"),
        (
            lambda targets: targets[0]["boxes"].mul_(640),
            r"targets\[0\] has a box with \d+\.?\d* in it; a target",
        ),
        (lambda targets: targets[0]["boxes"][0].fill_(torch.nan), r"targets\[0\] has a box with nan in it"),
        (lambda targets: targets[0]["boxes"][1, 2:].neg_(), r"targets\[0\] has a box of a negative width or height"),
        (lambda targets: targets[0].update(boxes=torch.rand(2, 3)), r"targets\[0\] has boxes \[2, 3\]; a target"),
        (lambda targets: targets[0].update(labels=torch.ones(2)), r"targets\[0\] has labels of torch\.float32"),
        (
            lambda targets: targets[0].update(labels=torch.ones(2, dtype=torch.uint8)),
            r"targets\[0\] has labels of torch\.uint8",
        ),
        (lambda targets: targets[0].update(labels=[1, 1]), r"targets\[0\] has labels that are a list; a target holds"),
        (lambda targets: targets[0].update(boxes=[[0.5] * 4] * 2), r"targets\[0\] has boxes that are a list; a target"),
    ],
)
def test_truths_in_another_form_are_named(change, said):
    targets = [{"labels": torch.ones(n, dtype=torch.int64), "boxes": torch.full((n, 4), 0.5)} for n in (2, 0, 3)]
    check_truths(targets, images=3, classes=5)
    change(targets)
    with pytest.raises(UserError, match=said):
        check_truths(targets, images=3, classes=5)


def test_predictions_of_a_single_layer_are_named():
    criterion = detrkit.build_criterion(detrkit.load_recipe("dab_detr_r50_50ep"))
    logits, boxes = torch.zeros(2, 12, 5), torch.full((2, 12, 4), 0.5)
    targets = [{"labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}] * 2
    assert criterion(Output(logits[None], boxes[None]), targets)["total"] > 0
    for output, said in (
        (Output(logits, boxes), r"logits \[2, 12, 5\] and boxes \[2, 12, 4\].* take logits\[None\] and boxes\[None\]"),
        (Output(logits[None], boxes[None, :, 1:]), r"boxes \[1, 2, 11, 4\]"),
        ({"logits": logits[None], "boxes": boxes[None]}, r"predictions are dict; the criterion takes detrkit\.Output"),
    ):
        with pytest.raises(UserError, match=said):
            criterion(output, targets)


def test_truths_at_the_ends_of_what_is_allowed():
    check_truths([{"labels": torch.tensor([0, 4]), "boxes": torch.full((2, 4), 2.0)}], images=1, classes=5)


def test_a_class_that_is_sure_costs_what_eps_leaves():
    """p = 0 and p = 1 at gamma 3 and alpha 0.3: the logarithm is held by 1e-8."""
    logits = torch.tensor([[[[-800.0], [800.0], [0.0]]]], dtype=torch.float64)
    output = Output(logits, torch.zeros(1, 1, 3, 4))
    targets = Targets(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 4), (1,), 1)
    found = FocalCost(alpha=0.3, gamma=3.0)(output, targets)[0, 0, :, 0].tolist()
    most = -math.log(1e-8)
    assert found == pytest.approx([0.3 * most, -0.7 * most, -0.4 * 0.125 * math.log(2)], rel=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("logit", [-1.5, 0.5])
def test_focal_loss_of_a_soft_target(target, logit):
    """With an odd power, which an even one would hide the sign of."""
    p = 1 / (1 + math.exp(-logit))
    away = 1 - (p * target + (1 - p) * (1 - target))
    entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
    expected = (0.3 * target + 0.7 * (1 - target)) * away**3 * entropy
    found = focal_loss(torch.tensor(logit).double(), torch.tensor(target).double(), 0.3, 3.0)
    assert found.item() == pytest.approx(expected)


def test_eps_reaches_the_overlaps_of_costs_and_losses():
    boxes = torch.tensor([[[[0.3, 0.3, 0.4, 0.4]]]], dtype=torch.float64)  # 0.1 to 0.5, both ways
    output = Output(torch.zeros(1, 1, 1, 1), boxes, objectness=torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    truth = torch.tensor([[[0.5, 0.4, 0.4, 0.4]]], dtype=torch.float64)  # 0.3 to 0.7, 0.2 to 0.6
    targets = Targets(torch.zeros(1, 1, dtype=torch.int64), truth, (1,), 1)
    first = torch.zeros(1, 1, dtype=torch.int64)
    matches, objects = Matches(first[0], first, first), torch.tensor(2.0)
    iou = 0.06 / (0.26 + 0.1)
    giou = iou - (0.3 - 0.26) / (0.3 + 0.1)
    assert GIoUCost(eps=0.1)(output, targets).item() == pytest.approx(-giou)
    assert GIoULoss(eps=0.1)(output, targets, matches, objects).item() == pytest.approx((1 - giou) / 2)
    found = ObjectnessLoss(eps=0.1, alpha=0.3, gamma=3.0)(output, targets, matches, objects).item()
    assert found == pytest.approx((0.3 * iou + 0.7 * (1 - iou)) * 0.5**3 * math.log(2) / 2)
