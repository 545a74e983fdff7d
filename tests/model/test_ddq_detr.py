"""DDQ-DETR against its official code: every loss in training, every gradient, and the answer.

`ddq_detr.safetensors` holds them, for a small detector without backbone whose weights and features follow rules
(`official_case.py`), with the noise that was drawn. Its metadata names the code.
"""

import pytest
import torch

from tests.model.official_case import Case

CASE = Case(
    "ddq_detr",
    "ddq_detr_4scale_r50_12ep",
    [
        "blocks.denoising.count=4",
        "queries.count=24",
        "blocks.dense.count=36",
        "queries.iou=0.02",
        "decoder.distinct=0.02",
    ],
)
NAMES = {"class": "loss_cls", "box": "loss_bbox", "giou": "loss_iou"}
DENSE = {"class_of_dense": "aux_loss_cls", "giou": "aux_loss_bbox"}
WEIGHTS = {"class": 1, "class_of_dense": 1, "box": 5, "giou": 2}


def official_name(name):
    """What the official code calls one of our losses; None for those that weigh nothing there."""
    extra, _, term = name.rpartition("/")
    kind, _, layer = term.partition(".")
    if extra == "dense_encoder":
        return f"aux_enc_{DENSE[kind]}" if kind in DENSE else None
    if extra == "dense":
        return f"{layer or 2}_aux_{DENSE[kind]}" if kind in DENSE else None
    if kind not in NAMES:
        return None
    before = {"": "", "encoder": "enc_", "denoising": "dn_"}[extra]
    return f"d{layer}.{before}{NAMES[kind]}" if layer else before + NAMES[kind]


def test_every_official_tensor_finds_its_place():
    assert len(CASE.placed()) == len(CASE.official)


def test_a_training_step_is_the_official_one():
    detector, criterion = CASE.build()
    detector.train().blocks["denoising"].draw = CASE.draws
    output = CASE.predict(detector)
    assert output.standing.sum(2).tolist() == [[24, 24], [24, 20], [24, 17]]  # the first image's first query stands
    losses = criterion(output, CASE.targets)
    official = {key[2:]: value.item() for key, value in CASE.stored.items() if key.startswith("l.")}
    found = {
        official_name(name): (name, loss.item())
        for name, loss in losses.items()
        if name not in ("total", "class_error")
    }
    found.pop(None)
    assert found.keys() == official.keys()
    for name, (ours, loss) in found.items():
        weight = WEIGHTS[ours.rpartition("/")[2].partition(".")[0]]
        assert weight * loss == pytest.approx(official[name], rel=1e-4), ours
    assert losses["total"].item() == pytest.approx(CASE.stored["total"].item(), rel=1e-4)
    losses["total"].backward()
    parameters = {id(tensor): name for name, tensor in CASE.official.items()}
    conversion = CASE.conversion()
    for ours, tensor in conversion.state.items():
        gradient = detector.get_parameter(ours).grad
        name = parameters.get(id(tensor), "dn_query_generator.label_embedding.weight")
        gradient = torch.zeros_like(tensor) if gradient is None else gradient
        gradient = gradient[: len(CASE.official[name])]
        CASE.check_gradient(name, gradient)


def test_the_answer_is_the_official_one():
    standing = CASE.stored["standing"]
    output = CASE.check_answer(CASE.build()[0], standing)
    assert torch.equal(output.standing[-1], standing)
