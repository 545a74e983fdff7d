"""MS-DETR against its official code: every loss in training, every gradient, and the answer.

`ms_detr.safetensors` holds them, for a small detector without backbone whose weights and features follow rules
(`official_case.py`), with the queries that were drawn. Its metadata names the code. The decoder alone is in
`test_many_first.py`.
"""

import pytest
import torch

import detrkit
from detrkit.structures import Output, Targets
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
