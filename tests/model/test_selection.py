"""Queries that the encoder chooses, learned points, and references that stay or move."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import detrkit
from detrkit.geometry.box import BoxGeometry
from detrkit.geometry.point import PointGeometry
from detrkit.heads import PredictionHead
from detrkit.position import sine_code
from detrkit.queries.distinct import DistinctSelectionQueries, distinct
from detrkit.queries.learned import LearnedQueries
from detrkit.queries.points import LearnedPointQueries
from detrkit.queries.selection import MixedSelectionQueries, TwoStageQueries
from detrkit.structures import Memory, Reference

WIDTH, CLASSES = 16, 5


def memory(shapes=((4, 5),), padded=True):
    torch.manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    masks = []
    for h, w in shapes:
        mask = torch.zeros(2, h, w, dtype=torch.bool)
        mask[1, h // 2 :] = True
        masks.append(mask.flatten(1))
    return Memory(torch.randn(2, cells, WIDTH), torch.randn(2, cells, WIDTH), shapes, torch.cat(masks, 1))


def build(part, head=PredictionHead, **options):
    torch.manual_seed(1)
    queries = part(width=WIDTH, geometry=BoxGeometry(), classes=CLASSES, head=head, **options)
    for parameter in queries.proposals.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return queries


def test_the_best_tokens_become_references_and_ranks_keep_their_content():
    held, queries = memory(), build(MixedSelectionQueries, count=6)
    chosen = queries(held)
    start = queries.proposals(held)
    logits = queries.proposals.head.classes[0](start.tokens)
    for image in range(2):
        best = logits[image].amax(-1).argsort(descending=True, stable=True)[:6]
        proposed = chosen.extras["encoder"].output
        assert torch.allclose(proposed.logits[0, image].amax(-1), logits[image, best].amax(-1))
        assert torch.equal(chosen.content[image], queries.content)
        assert torch.equal(chosen.reference.point[image], proposed.boxes[0, image, :, :2])
    assert not chosen.reference.point.requires_grad
    assert proposed.boxes.requires_grad


def test_tokens_that_are_sure_of_no_object_are_not_chosen():
    """ "No object", the last logit, says the opposite of what selection looks for, whatever its value."""
    held = memory()
    queries = build(MixedSelectionQueries, count=6, head=partial(PredictionHead, background=True))
    weight = queries.proposals.head.classes[0].layers[-1].weight
    with torch.no_grad():
        expected = queries(held).reference.point
        weight[-1] = -20 * weight[:-1].sum(0)  # a large logit, and largest where the classes' are small
        assert torch.equal(queries(held).reference.point, expected)
        logits = queries.proposals.head(0, queries.proposals(held).tokens).logits
    assert logits.shape[-1] == CLASSES + 1
    assert (logits.argmax(-1) == CLASSES).any()


def test_a_proposal_starts_around_its_cell():
    held, queries = memory(((8, 8), (4, 4))), build(MixedSelectionQueries)
    start = queries.proposals(held)
    boxes = start.boxes.sigmoid()
    assert start.usable.sum(1).tolist() == [80, 40]
    assert torch.allclose(boxes[0, 9], torch.tensor([1.5 / 8, 1.5 / 8, 0.05, 0.05]))
    assert torch.allclose(boxes[0, 64 + 5], torch.tensor([1.5 / 4, 1.5 / 4, 0.1, 0.1]))
    assert torch.allclose(boxes[1, 9], torch.tensor([1.5 / 8, 1.5 / 4, 0.05, 0.05]))  # the image fills the upper half
    assert (boxes[1, 40:64] == 1).all()
    assert torch.equal(start.tokens[1, 40:64], start.tokens[1, 40].expand(24, -1))


def test_padding_is_chosen_as_published_or_last():
    held, queries = memory(), build(MixedSelectionQueries, count=12)
    last = queries.proposals.head.classes[0].layers[-1]
    with torch.no_grad():  # the score of an unusable token, which is read as zeros, is the highest of all
        last.weight.zero_()
        last.bias.zero_()
        queries.proposals.norm.bias.fill_(1.0)
        queries.proposals.project.bias.zero_()
        last.weight[0] = 1.0
        queries.proposals.norm.weight.fill_(0.1)
        queries.proposals.norm.weight[0] = -5.0
    published = queries(held).extras["encoder"].output.boxes[0, 1]
    queries.skip_unusable = True
    corrected = queries(held).extras["encoder"].output.boxes[0, 1]
    unusable = (published == 1).all(-1).sum()
    assert unusable > 2
    assert (corrected == 1).all(-1).sum() == 2  # of ten usable tokens ten are taken first
    assert not (corrected[:10] == 1).all(-1).any()


@pytest.mark.parametrize("part", [MixedSelectionQueries, TwoStageQueries])
def test_a_map_with_fewer_tokens_than_queries_gives_them_all(part):
    queries = build(part, count=50)
    chosen = queries(memory())
    assert chosen.content.shape == (2, 20, WIDTH)
    assert chosen.reference.point.shape == (2, 20, 2)


def test_two_stages_make_content_and_embedding_of_the_chosen_boxes():
    held, queries = memory(), build(TwoStageQueries, count=6)
    chosen = queries(held)
    extra = chosen.extras["encoder"]
    assert extra.classless
    assert extra.output.logits.shape == (1, 2, 20, CLASSES)
    best = extra.output.logits[0, 0, :, 0].argsort(descending=True)[:6]
    boxes = extra.output.boxes[0, 0, best].detach()
    assert torch.allclose(chosen.reference.point[0], boxes[:, :2])
    made = queries.norm(queries.place(sine_code(boxes, WIDTH // 2, 10000.0)))
    assert torch.allclose(chosen.embedding[0], made[:, :WIDTH], atol=1e-6)
    assert torch.allclose(chosen.content[0], made[:, WIDTH:], atol=1e-6)


def test_a_classless_extra_counts_every_object_as_class_0():
    recipe = detrkit.load_recipe("base/deformable_detr", ["detector.classes=5"])
    criterion = detrkit.build_criterion(recipe)
    extra = build(TwoStageQueries, count=6)(memory()).extras["encoder"]
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.1], [0.6, 0.5, 0.3, 0.3]])
    targets = [{"labels": torch.tensor([3, 4]), "boxes": boxes}, {"labels": torch.tensor([2]), "boxes": boxes[:1]}]
    background = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    answer = extra.output
    found = criterion(replace(answer, extras={"encoder": extra}), targets)
    expected = criterion(answer, background)
    for name in ("class", "box", "giou"):
        assert torch.isclose(found[f"encoder/{name}"], expected[name])
    assert not torch.isclose(found["class"], expected["class"])


def test_learned_points_are_read_off_the_embedding():
    queries = LearnedPointQueries(width=WIDTH, geometry=PointGeometry(), count=7)
    made = queries(memory())
    assert torch.equal(made.embedding[0], queries.table[:, :WIDTH])
    assert torch.equal(made.content[1], queries.table[:, WIDTH:])
    expected = (queries.table[:, :WIDTH] @ queries.point.weight.T + queries.point.bias).sigmoid()
    assert torch.allclose(made.reference.point[0], expected, atol=1e-6)
    assert made.reference.sides is None


@pytest.mark.parametrize("part", [LearnedPointQueries, partial(LearnedQueries, point_depth=2)])
def test_learned_points_are_float32_under_autocast(part):
    """In bfloat16 points beyond the middle of an image lie on every 256th of it: 5 pixels of 1333."""
    torch.manual_seed(0)
    queries = part(width=WIDTH, geometry=PointGeometry(), count=50)
    exact = queries(memory()).reference.point
    with torch.autocast("cpu", torch.bfloat16):
        coarse = queries(memory()).reference.point
    assert coarse.dtype == torch.float32
    assert (coarse - exact).abs().max() < 3e-3


def test_a_point_shifts_the_centre_and_becomes_a_box_where_it_is_refined():
    offsets = {"box": torch.tensor([[[0.5, -0.5, 1.0, -1.0]]], dtype=torch.float64)}
    point = torch.tensor([[[0.2, 0.7]]], dtype=torch.float64)
    geometry = PointGeometry(refined=True)
    first = geometry.decode(offsets, Reference(point)).boxes
    logit = torch.logit(torch.tensor([0.2, 0.7], dtype=torch.float64))
    expected = torch.sigmoid(torch.cat((logit, torch.zeros(2).double())) + offsets["box"][0, 0])
    assert torch.allclose(first[0, 0], expected, atol=1e-12)
    moved = geometry.move(offsets, Reference(point))
    assert torch.allclose(moved.size("test"), first[..., 2:])
    again = geometry.decode(offsets, moved).boxes
    assert torch.allclose(again, torch.sigmoid(torch.logit(first) + offsets["box"]))
    assert geometry.moves
    assert not PointGeometry().moves


@pytest.mark.parametrize("refined", [False, True])
def test_points_that_stay_learn_from_every_layer_and_those_that_move_from_the_first(refined):
    recipe = detrkit.load_recipe(
        "base/deformable_detr",
        [
            "backbone.name=resnet18",
            "backbone.pretrained=false",
            "detector.classes=5",
            "detector.width=32",
            "detector.heads=4",
            "encoder.layers=0",
            "decoder.layers=2",
            f"geometry.refined={str(refined).lower()}",
        ],
    )
    torch.manual_seed(0)
    detector = detrkit.build_detector(recipe).eval()
    for layer in detector.decoder.layers:  # places reach a box through its reference alone
        nn.init.zeros_(layer.cross_attention.attention.out.weight)
    boxes = detector(torch.randn(1, 3, 64, 64)).boxes
    first, last = (
        torch.autograd.grad(one.sum(), detector.queries.point.bias, allow_unused=True, retain_graph=True)[0]
        for one in boxes
    )
    assert first.abs().sum() > 0
    assert last is None or not last.any() if refined else last.abs().sum() > 0


def iou(a, b):
    """Of two boxes (cx, cy, w, h)."""
    sides = [
        max(min(p + q / 2, r + t / 2) - max(p - q / 2, r - t / 2), 0)
        for p, q, r, t in ((a[0], a[2], b[0], b[2]), (a[1], a[3], b[1], b[3]))
    ]
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_distinct_boxes_are_the_official_code_s():
    """`distinct_selection.safetensors` names the code; near copies of 12 boxes, of which 32 and 30 are distinct."""
    stored = load_file(Path(__file__).parent / "distinct_selection.safetensors")
    scores = stored["logits"].amax(-1)
    for count in (10, 20):
        assert torch.equal(distinct(stored["boxes"], scores, count, 0.8)[0], stored[f"chosen.{count}"])
    every, stand = distinct(stored["boxes"], scores, 99, 0.8)
    assert [sorted(row) for row in every.tolist()] == [list(range(60))] * 2
    for boxes, points, row in zip(stored["boxes"].tolist(), scores, every.tolist(), strict=True):
        standing = []
        for place in points.argsort(descending=True).tolist():
            if all(iou(boxes[place], boxes[other]) <= 0.8 for other in standing):
                standing.append(place)
        rest = [place for place in points.argsort(descending=True).tolist() if place not in standing]
        assert row == standing + rest
    assert stand.sum(1).tolist() == [32, 30]


def test_distinct_queries_bring_their_tokens():
    held, queries = memory(padded=True), build(DistinctSelectionQueries, count=6, iou=0.05)
    chosen = queries(held)
    proposed = chosen.extras["encoder"].output
    assert torch.equal(chosen.reference.point, proposed.boxes[0, ..., :2])
    for image in range(2):
        content = queries.content(held.tokens[image])
        assert len({int((content - row).abs().sum(-1).argmin()) for row in chosen.content[image]}) == 6
        boxes = proposed.boxes[0, image].tolist()
        assert max(iou(boxes[0], other) for other in boxes[1:3]) <= 0.05
    (chosen.content.sum() + proposed.boxes.sum()).backward()
    assert queries.content.weight.grad.any()


def test_what_lacks_is_nothing_where_asked():
    held, queries = memory(padded=True), build(DistinctSelectionQueries, count=12, iou=0.05)
    chosen = queries(held)
    _, stand = distinct(*proposed_boxes(queries, held), 12, 0.05)
    assert 0 < (~stand).sum() < 20
    queries.fills_up = False
    fewer = queries(held)
    proposed, before = fewer.extras["encoder"].output, chosen.extras["encoder"].output
    assert torch.equal(proposed.boxes[0][stand], before.boxes[0][stand])
    assert torch.equal(fewer.content[stand], chosen.content[stand])
    assert (proposed.boxes[0][~stand] == 0.5).all()
    assert (fewer.reference.size("test")[~stand] == 0.5).all()
    assert not proposed.logits[0][~stand].any()
    assert not fewer.content[~stand].any()


def proposed_boxes(queries, held):
    """All tokens' boxes and scores."""
    start, head = queries.proposals(held), queries.proposals.head
    return torch.sigmoid(head.offsets(0, start.tokens)["box"] + start.boxes).detach(), head.certainty(0, start.tokens)
