"""MS-DETR against its official code: every loss in training, every gradient, and the answer.

`ms_detr.safetensors` holds them, for a small detector without backbone whose weights and features follow rules
(`official_case.py`), with the queries that were drawn. Its metadata names the code. The decoder alone is in
`test_many_first.py`.
"""

from dataclasses import replace

import pytest
import torch

import detrkit
from detrkit.structures import Matches, Output, Targets
from tests.model.official_case import Case

CASE = Case("ms_detr", "ms_deformable_detr_pp_4scale_r50_12ep", ["queries.count=16", "blocks.mixed.threshold=0.2"])
NAMES = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
ENDS = {"": "", "encoder": "_enc", "mixed": "_o2m"}


def official_name(name):
    """What the official code calls one of our losses."""
    extra, _, term = name.rpartition("/")
    kind, _, layer = term.partition(".")
    return NAMES[kind] + (f"_{layer}" if layer else "") + ENDS[extra]


def test_every_official_tensor_finds_its_place():
    assert CASE.placed() == CASE.official.keys()


def test_a_training_step_is_the_official_one():
    detector, criterion = CASE.build()
    detector.train().blocks["mixed"].chances = lambda shape: CASE.stored["chances"]
    losses = criterion(CASE.predict(detector), CASE.targets)
    CASE.check_losses(losses, official_name)
    losses["total"].backward()
    assert CASE.held == set(CASE.official)
    CASE.check_gradients(detector)


def test_the_answer_is_the_official_one():
    CASE.check_answer(CASE.build()[0])


def test_no_more_queries_are_drawn_than_asked():
    block = detrkit.part("block", "mixed", threshold=0.0, most=0.5)(
        width=8, classes=3, geometry=None, head=detrkit.part("head", "mlp")
    )
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(6, 1)
    target = {"labels": torch.tensor([1]), "boxes": boxes[:1]}
    [found] = block.assign(Output(torch.zeros(1, 1, 6, 3), boxes[None, None]), Targets.pad([target]))()
    assert found.query.shape == (1, 3)


def test_a_small_share_of_few_queries_is_one_query():
    block = detrkit.part("block", "mixed", most=0.01)(
        width=8, classes=3, geometry=None, head=detrkit.part("head", "mlp")
    )
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(6, 1)
    target = {"labels": torch.tensor([1]), "boxes": boxes[:1]}
    [found] = block.assign(Output(torch.zeros(1, 1, 6, 3), boxes[None, None]), Targets.pad([target]))()
    assert found.query.shape == (1, 1)


@pytest.mark.parametrize("name", ["focal", "varifocal"])
def test_a_query_of_two_objects_learns_the_class_of_the_one_it_fits_better(name):
    """Query 0 is the best one of both objects; query 1 fits the second better than the first, and counts for it."""
    block = detrkit.part("block", "mixed", one_class=True)(
        width=8, classes=3, geometry=None, head=detrkit.part("head", "mlp")
    )
    truth = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4]])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.55, 0.5, 0.4, 0.4]])
    logits = torch.logit(torch.tensor([[0.1, 0.9, 0.8], [0.1, 0.1, 0.7]]))
    output = Output(logits[None, None], boxes[None, None])
    targets = Targets.pad([{"labels": torch.tensor([1, 2]), "boxes": truth}])
    [found] = block.assign(output, targets)()
    pairs = list(zip(found.query[0].tolist(), found.target[0].tolist(), found.teaches[0].tolist(), strict=True))
    assert sorted(pairs) == [(0, 0, True), (0, 1, False)]
    loss = detrkit.part("loss", name)()
    alone = found.__class__(found.image[:1], torch.tensor([[0]]), torch.tensor([[0]]))
    one = torch.tensor(1.0)
    assert loss(output, targets, found, one) == pytest.approx(loss(output, targets, alone, one).tolist())


def of_two_objects(second):
    """Query 1 answers for two objects of classes 2 and 0, whose boxes the prediction overlaps by 0.9 and 0.5."""
    boxes = torch.tensor([[[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.4, 0.4]]]], dtype=torch.float64, requires_grad=True)
    output = Output(
        torch.linspace(-1, 1, 8, dtype=torch.float64).view(1, 1, 2, 4),
        boxes,
        objectness=torch.tensor([[[[0.3], [-0.4]]]], dtype=torch.float64),
        background=True,
    )
    truth = torch.tensor([[0.5, 0.5, 0.4, 0.36], [0.5, 0.6, 0.4, 0.2]], dtype=torch.float64)
    targets = Targets.pad([{"labels": torch.tensor([2, 0]), "boxes": truth}], torch.float64)
    order = torch.tensor([[1 - second, second]])
    matches = Matches(torch.zeros(2, dtype=torch.int64), torch.ones_like(order), order)
    return output, targets, matches, torch.tensor(2.0)


def test_the_objectness_of_a_query_of_two_objects_is_the_better_one_s():
    values, slopes = [], []
    for second in (0, 1):
        output, targets, matches, objects = of_two_objects(second)
        best = replace(matches, image=matches.image[:1], query=matches.query[:, :1], target=torch.tensor([[0]]))
        for pairs in (matches, best):
            loss = detrkit.part("loss", "objectness")()(output, targets, pairs, objects)
            values.append(loss.item())
            slopes.append(torch.autograd.grad(loss.sum(), output.boxes)[0])
    assert values == pytest.approx(values[:1] * 4)
    assert slopes[0].any()
    torch.testing.assert_close(torch.stack(slopes), slopes[0].expand(4, -1, -1, -1, -1))


@pytest.mark.parametrize(("taught", "learned"), [(None, 0), ([True, False], 2), ([False, True], 0)])
def test_a_softmax_learns_one_class_of_a_query_of_two_objects(taught, learned):
    """That which the block says; else the first by number, whatever the order of the objects."""
    for second in (0, 1):
        output, targets, matches, objects = of_two_objects(second)
        if taught is not None:
            matches = replace(matches, teaches=torch.tensor(taught)[matches.target])
        loss = detrkit.part("loss", "softmax", background=1.0)()(output, targets, matches, objects)
        chances = output.logits[0, 0].log_softmax(-1)
        assert loss.item() == pytest.approx(-(chances[0, 3] + chances[1, learned]).item() / 2)
