"""The criterion: what it divides by, what it leaves out, and what it reports."""

import inspect
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

import detrkit
from detrkit.errors import UserError
from detrkit.losses.base import BaseCriterion, Loss
from detrkit.losses.criterion import Criterion, class_error
from detrkit.losses.terms import L1Loss, power
from detrkit.matching.costs import Cost, GIoUCost, L1Cost
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.recipe.registry import load_registered_parts, parts
from detrkit.structures import Extra, Matches, Output, Targets
from tests.model.test_matching_and_losses import CLASSES, criterion, matcher, scene


def test_the_class_error_is_of_the_last_layer_s_matched_queries():
    logits = torch.zeros(2, 1, 4, CLASSES)
    logits[0, 0, :, 2] = 1  # the layer before is wrong everywhere
    logits[1, 0, torch.arange(4), torch.tensor([0, 1, 1, 2])] = 1
    output = Output(logits, torch.zeros(2, 1, 4, 4))
    targets = Targets(torch.tensor([[0, 1, 0, 1]]), torch.zeros(1, 4, 4), (4,), 1)
    pairs = torch.arange(4).expand(2, -1)
    assert class_error(output, targets, Matches(torch.zeros(4, dtype=torch.int64), pairs, pairs)).item() == 50
    right, wrong = (Matches(torch.zeros(1, dtype=torch.int64), *torch.full((2, 1, 1), place)) for place in (0, 3))
    longer = Output(torch.cat((logits, logits[1:])), torch.zeros(3, 1, 4, 4))
    assert class_error(longer, targets, [wrong, wrong, right]).item() == 0
    none = Matches(torch.zeros(0, dtype=torch.int64), *torch.zeros(2, 2, 0, dtype=torch.int64))
    assert class_error(output, targets, none).item() == 0


def test_a_batch_without_objects_counts_one():
    made = criterion()
    assert made.normalizer([{"labels": torch.zeros(0)}] * 2, torch.device("cpu")).item() == 1
    assert made.normalizer([{"labels": torch.zeros(2)}, {"labels": torch.zeros(3)}], torch.device("cpu")).item() == 5


def test_objects_are_those_of_all_processes_over_the_processes(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(7))  # of two others
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    found = criterion().normalizer([{"labels": torch.zeros(2)}] * 2, torch.device("cpu"))
    assert found == torch.tensor(11) / 3


def test_terms_that_ask_for_what_an_extra_does_not_predict_are_left_out():
    output, targets = scene()
    bare = Output(logits=output.logits, boxes=output.boxes)
    made = criterion()
    made.matcher = matcher(GIoUCost())
    terms = made.terms(replace(output, extras={"more": Extra(bare, weight=0.25, copies=3)}), targets)
    assert {name for name in terms if name.startswith("more/")} == {"more/class", "more/box", "more/giou"}
    alone = Criterion(matcher=matcher(GIoUCost()), losses={"box": L1Loss(form="corners")})
    repeated = [{name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in t.items()} for t in targets]
    expected = alone.terms(bare, repeated)  # divided by three times the objects
    torch.testing.assert_close(terms["more/box"], 0.25 * expected["box"])
    with pytest.raises(UserError, match=r"objectness loss needs head\.objectness = true"):
        made.losses["objectness"](bare, Targets.pad(targets), None, None)


def test_a_term_of_ones_own_gives_a_number_of_each_layer_and_a_cost_one_of_each_pair():
    output, targets = scene()

    class Wrong(Loss):
        weight = 1.0

        def __call__(self, output, targets, matches, objects):
            return matches.take(output.boxes)[..., 0]  # of each pair

    class LastLayer(Cost):
        weight = 1.0

        def __call__(self, output, targets):
            return torch.cdist(output.boxes[-1], targets.boxes)

    layers, images, queries = output.logits.shape[:3]
    with pytest.raises(UserError, match=rf"losses\.mine gives \[{layers}, \d+\], should be \[Y\] = \[{layers}\]"):
        Criterion(matcher=matcher(L1Cost()), losses={"mine": Wrong})(output, targets)
    wanted = rf"should be \[Y, B, N, T\] = \[{layers}, {images}, {queries}, \d\]"
    with pytest.raises(UserError, match=r"matcher\.costs\.mine gives .*, " + wanted):
        HungarianMatcher(costs={"mine": LastLayer})(output, Targets.pad(targets, output.boxes.dtype))


def test_boxes_of_other_than_four_numbers_are_refused():
    output, targets = scene()
    wide = replace(output, boxes=torch.cat((output.boxes, output.boxes[..., :1]), dim=-1))
    with pytest.raises(UserError, match=r"they are \[Y, B, N, K\] and \[Y, B, N, 4\]"):
        criterion().terms(wide, targets)


def test_predicted_boxes_without_their_sigmoid_are_named():
    output, targets = scene()
    raw = replace(output, boxes=output.boxes.logit(eps=1e-3) - 3)
    with pytest.raises(UserError, match=r"a predicted box has a width or height of -.*: take the sigmoid"):
        criterion().terms(raw, targets)


def test_truths_that_are_no_dicts_are_named():
    output, targets = scene((2, 1))
    with pytest.raises(UserError, match=r"targets\[0\] is a str; each image has a dict, which holds boxes"):
        criterion().terms(output, targets[0])  # whose keys are as many as the images


def test_groups_share_the_weight_of_a_term():
    output, targets = scene()
    alone, shared = (criterion().terms(replace(output, repeats=count), targets) for count in (1, 4))
    torch.testing.assert_close(shared, {name: value / 4 for name, value in alone.items()})


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"losses is empty"):
        Criterion(matcher=matcher(L1Cost()), losses={})
    with pytest.raises(UserError, match=r"losses is a list, should be losses by name"):
        Criterion(matcher=matcher(L1Cost()), losses=[L1Loss()])
    with pytest.raises(UserError, match=r"matcher\.costs is empty"):
        HungarianMatcher(costs={})


def test_costs_and_losses_of_halves_are_in_float32_under_autocast_too():
    """Even of a product, which autocast would take in bfloat16."""
    seen = []

    class Product(Cost):
        weight = 1.0

        def __call__(self, output, targets):
            product = output.boxes @ targets.boxes.mT
            seen.append(product.dtype)
            return product

    class ProductLoss(Loss):
        weight = 1.0

        def __call__(self, output, targets, matches, objects):
            product = output.logits @ output.logits.mT
            seen.append(product.dtype)
            return product.sum((1, 2, 3)) / objects

    output, targets = scene()
    half = Output(output.logits.bfloat16(), output.boxes.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        Criterion(matcher=matcher(Product()), losses={"product": ProductLoss()})(half, targets)
    assert seen == [torch.float32] * 2


load_registered_parts()


@pytest.mark.parametrize(("slot", "name"), [(slot, name) for slot in ("loss", "cost") for name in parts(slot)])
def test_a_weight_that_is_given_is_the_part_s(slot, name):
    weights = {"weight": 0.7, "extra_weights": {"denoising": 3.0}}
    known = inspect.signature(parts(slot)[name]).parameters
    weights = {key: value for key, value in weights.items() if key in known}
    made = detrkit.part(slot, name, **weights)()
    assert {key: getattr(made, key) for key in weights} == weights


@pytest.mark.parametrize("name", ["focal", "high_order", "position_modulated"])
def test_a_cost_that_takes_objectness_asks_the_head_for_it(name):
    made = {objectness: detrkit.part("cost", name, objectness=objectness)() for objectness in (False, True)}
    assert (made[False].needs, made[True].needs) == ((), ("objectness",))


def test_labels_are_held_to_the_classes_but_no_object_is_none():
    output, targets = scene((2, 1))  # of 2 images, 5 queries and 3 classes
    targets[1]["labels"][0] = 2
    criterion().terms(output, targets)
    with pytest.raises(UserError, match=r"targets\[1\] has the label 2; labels are 0 to 1"):
        criterion().terms(replace(output, background=True), targets)


def test_a_criterion_of_ones_own_has_a_total_and_counts_no_costs():
    class Own(BaseCriterion):
        def forward(self, output, targets, objects=None, images=None):
            return {"total": (output, targets, objects, images), "shown": 0}

    assert Own().weighted("output", "targets", "objects", "images") == {
        "total": ("output", "targets", "objects", "images")
    }
    assert Own().bad_costs == 0


@pytest.mark.parametrize(("exponent", "slope"), [(0.0, 0.0), (0.5, 0.0), (1.0, 1.0), (2.0, 0.0)])
def test_a_power_of_nothing_has_a_slope(exponent, slope):
    """The root's is cut: it has none at 0."""
    base = torch.zeros((), requires_grad=True)
    power(base, exponent).backward()
    assert base.grad.item() == slope
