"""Hybrid matching, mixed supervision and position relation: official numbers, and what they leave alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detrkit
from detrkit.attention.relation import RelationPosition
from detrkit.blocks.hybrid import HybridMatching
from detrkit.errors import UserError
from detrkit.geometry.box import BoxGeometry
from detrkit.heads import Head, HeadOutput
from detrkit.losses.criterion import Criterion
from detrkit.matching.many_to_one import ranks
from detrkit.queries.selection import TwoStageQueries
from detrkit.structures import Memory, Output, Queries, Reference, Targets
from tests.model.test_blocks import SMALL, batch, build
from tests.model.test_detector import batch as detector_batch
from tests.model.test_detector import small
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


class LinearHead(Head):
    """A linear layer each for classes and boxes."""

    def __init__(self, *, width, classes, layers, offset_widths, size_offsets):
        super().__init__()
        self.label, self.box = torch.nn.Linear(width, classes), torch.nn.Linear(width, 4)

    def forward(self, layer, content):
        return HeadOutput(self.label(content), None, {"box": self.box(content)})


def many_to_one(name="iou_aware", **matcher):
    costs = {"class": "focal", "box": "l1", "giou": detrkit.part("cost", "giou", eps=0)}
    built = detrkit.part("matcher", "many_to_one", costs=costs, **matcher)
    losses = {"class": name, "box": "l1", "giou": detrkit.part("loss", "giou", eps=0)}
    return Criterion(matcher=built, losses=losses)


def test_many_queries_are_matched_and_weighed_as_officially():
    official = STORED["many_to_one"]
    logits = torch.stack([torch.stack([draw(f"m{y}{i}", 40, 6) * 4 - 2 for i in range(2)]) for y in range(2)])
    predicted = torch.stack([torch.stack([boxes(f"q{y}{i}", 40) for i in range(2)]) for y in range(2)])
    truths = [{"labels": torch.tensor(labels)} for labels in ([1, 4, 2], [0, 5])]
    truths = [{**truth, "boxes": boxes(f"t{i}", len(truth["labels"]))} for i, truth in enumerate(truths)]
    criterion, output = many_to_one(count=official["count"]), Output(logits, predicted)
    found = criterion.matcher(output, Targets.pad(truths))
    for layer, expected in enumerate(official["layers"]):
        for image, pairs in enumerate(expected["pairs"]):
            here = found[layer].image == image
            ours = zip(found[layer].query[0, here].tolist(), found[layer].target[0, here].tolist(), strict=True)
            assert sorted(ours) == sorted(tuple(pair) for pair in pairs)
    terms = criterion.terms(output, truths)
    for name, values in terms.items():
        assert values.tolist() == pytest.approx([layer[name] for layer in official["layers"]], rel=1e-4), name
    torch.testing.assert_close(
        criterion.terms(output.layer(1), truths), {name: values[1:] for name, values in terms.items()}
    )
    report = criterion(output, truths)
    assert report["class.0"] == terms["class"][0]
    last = sum((one.query[0] >= 0).sum() for one in found[-1:])
    assert last == 5
    best = [output.logits[1, i, q].argmax() for i, q in zip(found[1].image, found[1].query[0], strict=True)]
    right = sum(a == truths[i]["labels"][t] for a, i, t in zip(best, found[1].image, found[1].target[0], strict=True))
    assert report["class_error"] == pytest.approx(100 - 100 * float(right) / 5)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (400, 1)], ids=["empty", "half empty", "crowded"])
def test_several_queries_an_object_whatever_the_numbers(counts):
    detector, criterion = small("align_detr_4scale_r50_12ep", "decoder.layers=2", "encoder.layers=1")
    images, mask, targets = detector_batch(counts)
    output = detector.train()(images, mask, targets)
    losses = criterion(output, targets)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    requests = [(output, Targets.pad(targets)), (output.extras["encoder"].output, Targets.pad(targets))]
    answer, proposals = criterion.matcher.match(requests)
    most = min(output.logits.shape[2], counts[0]) + counts[1]
    assert answer[-1].query.shape == (1, most)
    assert (len(answer), len(proposals)) == (2, 1)
    twice = 2 * counts[1] + (min(output.logits.shape[2], counts[0]) if counts[0] else 0)
    assert answer[0].query.shape == proposals[0].query.shape == (1, twice)


def test_losses_that_count_all_pairs_alike_are_refused():
    with pytest.raises(UserError, match=r"losses\.class counts all pairs alike.*matcher\.type = .hungarian."):
        many_to_one("varifocal")


def test_ranks_are_of_each_owner():
    quality = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.9])
    owner = torch.tensor([[0, 0, 0, 1, 1], [2, 2, 2, 2, 3]])
    assert ranks(quality, owner).tolist() == [1, 0, 2, 0, 0]


def test_queries_of_learned_content_are_h_detr_s():
    """Twelve queries as two groups of six: the official code has no groups, and its ranks are ours in a row."""
    queries = TwoStageQueries(
        width=256, geometry=BoxGeometry(), classes=5, head=LinearHead, groups=2, count=6, content="learned"
    )
    proposals, head = queries.proposals, queries.proposals.head
    with torch.no_grad():
        queries.content.copy_(draw("content", 12, 256))
        for name, linear in (("enc_output", proposals.project), ("pos_trans", queries.place)):
            linear.weight.copy_((draw(f"{name}.w", *linear.weight.shape) - 0.5) / 4)
            linear.bias.copy_(draw(f"{name}.b", *linear.bias.shape) - 0.5)
        for name, norm in (("enc_output_norm", proposals.norm), ("pos_trans_norm", queries.norm)):
            norm.weight.copy_(draw(f"{name}.w", *norm.weight.shape) + 0.5)
            norm.bias.copy_(draw(f"{name}.b", *norm.bias.shape) - 0.5)
        head.label.weight.copy_((draw("cls.w", 5, 256) - 0.5) / 2)
        head.box.weight.copy_((draw("box.w", 4, 256) - 0.5) / 4)
        for linear in (head.label, head.box):
            linear.bias.zero_()
    masks = [torch.zeros(2, *shape, dtype=torch.bool) for shape in ((4, 5), (2, 3))]
    masks[0][1, 3:], masks[0][1, :, 4:], masks[1][1, :, 2:] = True, True, True
    tokens = draw("memory", 2, 26, 256) * 2 - 1
    memory = Memory(tokens, tokens, ((4, 5), (2, 3)), torch.cat([mask.flatten(1) for mask in masks], dim=1))
    found = queries(memory, groups=2)
    official = STORED["learned_content"]
    for name, ours in (
        ("references", found.reference.boxes()),
        ("positions", found.embedding[..., ::32]),
        ("content", found.content[..., ::32]),
    ):
        assert (ours - torch.tensor(official[name]).view(ours.shape)).abs().max() < 1e-5, name
    alone = queries(memory)
    assert torch.equal(alone.content, found.content[:, :6])
    assert torch.allclose(alone.embedding, found.embedding[:, :6], atol=1e-6)  # products of other sizes round otherwise


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


def test_a_second_set_is_given_in_one_way():
    with pytest.raises(UserError, match=r"groups \(sets\) or by a count; give one"):
        HybridMatching(sets=2, count=12)
    assert HybridMatching().groups == 6
