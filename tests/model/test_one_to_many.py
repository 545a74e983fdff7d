"""Hybrid matching, mixed supervision and position relation: official numbers, and what they leave alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detrkit
from detrkit.attention.relation import RelationPosition
from detrkit.errors import UserError
from detrkit.structures import Output, Queries, Reference, Targets
from tests.model.test_blocks import SMALL, batch, build
from tests.parity import golden

STORED = json.loads((Path(__file__).parent / "one_to_many.json").read_text())
HYBRID = "blocks.hybrid={type='hybrid', sets=2, copies=3, weight=0.5}"
RELATION = ["decoder.positions=['box', 'relation']", "decoder.self_attention.terms=['relation']"]


def draw(name, *shape):
    return torch.from_numpy(golden.random_state(name).random_sample(shape)).float()


def boxes(name, count):
    numbers = draw(name, count, 4)
    return torch.cat((0.3 + 0.4 * numbers[:, :2], 0.1 + 0.3 * numbers[:, 2:]), dim=-1)


def test_the_relation_is_the_official_one():
    position = RelationPosition(heads=8)
    with torch.no_grad():
        position.project.weight.copy_(draw("weight", 8, 64, 1, 1).flatten(1) - 0.5)
        position.project.bias.copy_(draw("bias", 8) - 0.5)
    before, now = (torch.stack([boxes(f"{name}{i}", 5) for i in range(2)]) for name in "ab")
    queries = Queries(torch.zeros(2, 5, 8), Reference(now[..., :2]), boxes=(before, now))
    relation = position(queries, None, None).relations["relation"]
    expected = torch.tensor(STORED["relation"]).view(2, 8, 5, 5)
    assert (relation(slice(None)) - expected).abs().max() < 1e-4
    assert torch.equal(relation(slice(1, 3)), relation(slice(None))[:, :, 1:3, 1:3])


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: f"{case['threshold']} {case['count']}")
def test_many_queries_are_assigned_as_officially(case):
    block = detrkit.part("block", "mixed", threshold=case["threshold"], count=case["count"])(
        width=8, classes=6, geometry=None, head=detrkit.part("head", "mlp")
    )
    logits = torch.stack([draw(f"l{i}", 40, 6) * 4 - 2 for i in range(2)])
    output = Output(logits[None], torch.stack([boxes(f"p{i}", 40) for i in range(2)])[None])
    truths = [{"labels": torch.tensor(labels)} for labels in ([1, 4, 2], [0, 5])]
    truths = [{**truth, "boxes": boxes(f"t{i}", len(truth["labels"]))} for i, truth in enumerate(truths)]
    [found] = block.assign(output, Targets.pad(truths))()
    for image, expected in enumerate(case["pairs"]):
        here = found.image == image
        pairs = zip(found.query[0, here].tolist(), found.target[0, here].tolist(), strict=True)
        assert sorted(pairs) == [tuple(pair) for pair in expected]


def test_the_second_set_learns_each_object_k_times():
    detector, criterion = build("base/dab_detr", HYBRID)
    images, targets = batch(3, 1)
    output = detector.train()(images, None, targets)
    losses = criterion(output, targets)
    repeated = [{name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in t.items()} for t in targets]
    alone = criterion(output.extras["hybrid"].output, repeated)  # divided by 12 objects
    for name in ("class", "box", "giou.0"):
        torch.testing.assert_close(losses[f"hybrid/{name}"], 0.5 * alone[name])
    answer = criterion(replace(output, extras={}), targets)
    torch.testing.assert_close(losses["total"], answer["total"] + 0.5 * alone["total"])


def test_a_loss_weighs_otherwise_where_an_extra_s_name_is_given():
    images, targets = batch(3, 1)
    totals = {}
    for weight in (1, 3):
        overrides = ["blocks.mixed.type=mixed", f"losses.class.extra_weights={{mixed={weight}}}"]
        detector, criterion = build("base/dab_detr", *overrides)
        losses = criterion(detector.train()(images, None, targets), targets)
        totals[weight] = losses["total"]
    classes = sum(value for name, value in losses.items() if name.startswith("mixed/class"))
    torch.testing.assert_close(totals[3] - totals[1], 2 * classes)


@pytest.mark.parametrize("overrides", [[HYBRID], ["blocks.mixed.type=mixed"], [HYBRID, *RELATION]])
def test_the_answer_is_what_it_is_outside_training(overrides):
    detector, _ = build("base/dab_detr", *overrides)
    images, targets = batch(3, 1)
    with torch.no_grad():
        trained = detector.train()(images, None, targets)
        evaluated = detector.eval()(images)
        alone = detector.for_inference()(images)
    torch.testing.assert_close(trained.logits, evaluated.logits)
    torch.testing.assert_close(alone.boxes[-1], evaluated.boxes[-1])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (RELATION[:1], 'add the term "relation"'),
        (RELATION[1:], 'needs the position "relation"'),
        ([HYBRID, "blocks.groups.count=3"], "both make groups"),
    ],
)
def test_what_cannot_go_together_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        detrkit.build_detector(detrkit.load_recipe("base/dab_detr", [*SMALL, "queries.count=6", *overrides]))
