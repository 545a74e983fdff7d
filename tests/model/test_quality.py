"""Class losses and the cost that look at the quality of the box, against the official codes and against loops.

`quality_losses.safetensors` holds two decoder layers' predictions of three images, pairs, and what the official codes
make of them in float64 on a CPU: losses over 7 objects, their gradients by the logits, and the cost of weight 2, one
image at a time. Its metadata names each code and file.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import detrkit
from detrkit.errors import UserError
from detrkit.matching import position_modulated
from detrkit.matching.high_order import HighOrderCost
from detrkit.matching.position_modulated import PositionModulatedCost
from detrkit.structures import Matches, Output, Targets
from tests.model.test_detector import batch, small

STORED = load_file(Path(__file__).parent / "quality_losses.safetensors")
LOSSES = ("varifocal", "matchability", "iou_aware", "position_supervised", "giou_aware")
IMAGES = range(3)


def scene() -> tuple[Output, Targets, Matches]:
    output = Output(logits=STORED["logits"].clone().requires_grad_(), boxes=STORED["boxes"].clone().requires_grad_())
    truths = [{"labels": STORED[f"labels.{i}"], "boxes": STORED[f"targets.{i}"]} for i in IMAGES]
    query, target = (
        torch.stack([torch.cat([STORED[f"{which}.{layer}.{i}"] for i in IMAGES]) for layer in range(2)])
        for which in ("query", "target")
    )
    image = torch.cat([torch.full_like(STORED[f"query.0.{i}"], i) for i in IMAGES])
    return output, Targets.pad(truths, torch.float64), Matches(image, query, target)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_official_code_s(name):
    output, targets, matches = scene()
    found = detrkit.part("loss", name)()(output, targets, matches, torch.tensor(7.0))
    expected = torch.stack([STORED[f"{name}.{layer}"] for layer in range(2)])
    assert torch.allclose(found, expected, rtol=1e-6)
    found.sum().backward()
    for layer in range(2):
        assert torch.allclose(output.logits.grad[layer], STORED[f"{name}.{layer}.grad"], rtol=1e-6, atol=1e-9)
    assert output.boxes.grad is None


def test_the_cost_is_the_official_code_s():
    output, targets, _ = scene()
    found = 2 * PositionModulatedCost()(output, targets)
    for layer, image in ((layer, image) for layer in range(2) for image in (0, 2)):
        expected = STORED[f"position_modulated.{layer}.{image}"]
        assert torch.allclose(found[layer, image, :, : targets.counts[image]], expected, rtol=1e-6)


def test_the_high_order_cost_is_the_official_code_s():
    output, targets, _ = scene()
    found = HighOrderCost()(output, targets)
    for layer, image in ((layer, image) for layer in range(2) for image in (0, 2)):
        expected = STORED[f"high_order.{layer}.{image}"]
        assert torch.allclose(found[layer, image, :, : targets.counts[image]], expected, rtol=1e-6, atol=1e-12)


def test_an_image_s_cost_is_its_own():
    """Objects of one class, and other images of the batch, which the official table mixes up."""
    output, targets, _ = scene()
    targets = replace(targets, labels=torch.ones_like(targets.labels))
    cost = PositionModulatedCost()(output, targets)
    lone = replace(output, logits=output.logits[:, :1], boxes=output.boxes[:, :1])
    first = PositionModulatedCost()(lone, Targets(targets.labels[:1], targets.boxes[:1], (4,), 1))
    assert torch.equal(cost[:, :1], first)
    score = output.logits[1, 0, 3, 1].sigmoid().item()
    best = max(share(output.boxes[1, 0, n], targets.boxes[0, t]) for n in range(12) for t in range(4))
    p = score * math.sqrt(share(output.boxes[1, 0, 3], targets.boxes[0, 2]) / best)
    expected = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    assert cost[1, 0, 3, 2].item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_without_objects_costs_nothing():
    nothing = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}] * 3
    assert PositionModulatedCost()(scene()[0], Targets.pad(nothing, torch.float64)).shape == (2, 3, 12, 0)


def share(a, b) -> float:
    """(GIoU + 1) / 2 of two boxes (cx, cy, w, h)."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.tolist(), b.tolist()
    width = max(min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2), 0)
    height = max(min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2), 0)
    hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    union = aw * ah + bw * bh - width * height
    return (width * height / union - (hull - union) / hull + 1) / 2


def test_a_giou_below_minus_one_counts_as_that(monkeypatch):
    """Where a processor multiplies and adds in one, a union may come out below 0."""
    giou = torch.tensor([-1.001, -1.0, 0.0, 1.0], dtype=torch.float64)
    assert detrkit.part("loss", "giou_aware")().quality(None, giou).tolist() == [0, 0, 0.5, 1]
    output, targets, _ = scene()
    monkeypatch.setattr(position_modulated, "overlaps", lambda a, b, eps: (None, torch.full((2, 3, 12, 4), -1.001)))
    cost = PositionModulatedCost()(output, targets)
    torch.testing.assert_close(cost, torch.full_like(cost, -0.25 * math.log(1e-8)))  # of a chance of 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_detector_has_little_to_learn(name):
    output, targets, matches = scene()
    sure = torch.full_like(output.logits, -12)
    boxes = output.boxes.detach().clone()
    layer = torch.arange(2)[:, None]
    sure[layer, matches.image, matches.query, matches.take_targets(targets.labels)] = 12
    boxes[layer, matches.image, matches.query] = matches.take_targets(targets.boxes)
    loss = detrkit.part("loss", name)()
    learned = loss(replace(output, logits=sure, boxes=boxes), targets, matches, torch.tensor(7.0))
    unlearned = loss(replace(output, logits=-sure, boxes=boxes), targets, matches, torch.tensor(7.0))
    assert (learned < 1e-3).all()
    assert (unlearned > 1).all()


CLASS = "losses.class={ type = 'position_supervised', weight = 6, extra_weights = { denoising = 1 } }"


def test_denoising_has_a_weight_of_its_own():
    detector, criterion = small("dino_ss_r50_12ep", CLASS)
    images, mask, targets = batch()
    output = detector.train()(images, mask, targets)
    losses, weighted = criterion(output, targets), criterion.weighted(output, targets)
    terms = criterion.terms(output, targets)
    assert torch.isclose(weighted["class"], 6 * terms["class"].sum())
    assert torch.isclose(weighted["encoder/class"], 6 * terms["encoder/class"].sum())
    assert torch.isclose(weighted["denoising/class"], terms["denoising/class"].sum())
    assert torch.isclose(losses["total"], sum(weighted.values()))


@pytest.mark.parametrize(
    ("name", "loss", "term"),
    [
        ("dino_ss_r50_12ep", "box", "encoder/box"),
        ("dino_ss_r50_12ep", "giou", "denoising/giou"),
        ("group_dab", "class", "groups/class"),
        ("sap_dn_r50_12ep", "objectness", "denoising/objectness"),
    ],
)
def test_every_term_takes_a_weight_beside_the_answer(name, loss, term):
    softmax = ["losses.class={type='softmax'}", "matcher.costs.class={type='softmax'}", "head.background=true"]
    overrides = [*softmax, "blocks.groups.count=2"] if name == "group_dab" else []
    name = "dab_detr_r50_50ep" if name == "group_dab" else name
    extra = term.partition("/")[0]
    detector, criterion = small(name, *overrides, f"losses.{loss}.extra_weights={{{extra}=0.5}}")
    images, mask, targets = batch()
    output = detector.train()(images, mask, targets)
    weighted, terms = criterion.weighted(output, targets), criterion.terms(output, targets)
    assert torch.isclose(weighted[term], 0.5 * terms[term].sum())
    assert torch.isclose(weighted[loss], criterion.losses[loss].weight * terms[loss].sum())
    assert criterion.losses[loss].weight != 0.5


def test_a_weight_of_what_is_not_trained_is_refused():
    detector, criterion = small("dino_ss_r50_12ep", CLASS.replace("denoising", "denoise"))
    images, mask, targets = batch()
    output = detector.train()(images, mask, targets)
    with pytest.raises(UserError, match=r"losses\.class\.extra_weights: .* named 'denoise'; there is .*'denoising'"):
        criterion(output, targets)


def test_an_evaluation_has_losses_though_less_is_trained_there_than_has_a_weight():
    detector, criterion = small("dino_ss_r50_12ep", CLASS)
    images, mask, targets = batch()
    losses = criterion(detector.eval()(images, mask), targets)
    assert not any(name.startswith("denoising/") for name in losses)
    assert losses["total"].isfinite()


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("varifocal", "sap_dn_r50_12ep"),
        ("matchability", "deformable_detr_4scale_two_stage_r50_50ep"),
        ("iou_aware", "group_detr_r50_12ep"),
        ("position_supervised", "sap_dn_r50_12ep"),
        ("giou_aware", "sap_dn_r50_12ep"),
    ],
)
def test_every_loss_goes_with_other_systems(loss, name):
    overrides = ["encoder.layers=1", "decoder.layers=2", f"losses.class.type={loss}"]
    detector, criterion = small(name, *overrides, "matcher.costs.class.type=position_modulated")
    images, mask, targets = batch((0, 2))
    losses = criterion(detector.train()(images, mask, targets), targets)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
