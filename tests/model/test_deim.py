"""DEIM's RT-DETR against its official code: every loss in training, every gradient, and the answer.

`deim_rt_detr.safetensors` holds them, for a small detector without backbone whose weights and features follow rules
(`official_case.py`), with the noise that was drawn. Its metadata names the code.
"""

import pytest
import torch

from tests.model.official_case import Case, probe

CASE = Case("deim_rt_detr", "rt_detr_deim_r50_60ep", ["encoder.layers=1", "blocks.denoising.count=4"], padded=False)
NAMES = {"class": "loss_mal", "box": "loss_bbox", "giou": "loss_giou"}


def official_name(name):
    """What the official code calls one of our losses."""
    extra, _, term = name.rpartition("/")
    kind, _, layer = term.partition(".")
    ends = {"": f"_aux_{layer}" if layer else "", "encoder": "_enc_0", "denoising": f"_dn_{layer or 2}"}
    return NAMES[kind] + ends[extra]


def test_every_official_tensor_finds_its_place():
    found = CASE.conversion()
    assert not found.unexpected
    assert not found.mismatched
    assert all(name.startswith("backbone.") for name in found.missing)
    assert {name for name in CASE.official if not name.endswith("num_points_scale")} == set(found.names)


def test_a_training_step_is_the_official_one():
    detector, criterion = CASE.build()
    detector.train().blocks["denoising"].draw = CASE.draws
    losses = criterion(CASE.predict(detector), CASE.targets)
    total, _ = losses.pop("total"), losses.pop("class_error")
    assert {official_name(name) for name in losses} == {key[2:] for key in CASE.stored if key.startswith("l.")}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(CASE.stored[f"l.{official_name(name)}"].item(), rel=1e-4), name
    assert total.item() == pytest.approx(CASE.stored["total"].item(), rel=1e-4)
    total.backward()
    ours = CASE.conversion().names
    for key, expected in CASE.stored.items():
        if key.startswith("g."):
            gradient = detector.get_parameter(ours[key[2:]]).grad
            assert (probe(key[2:], gradient) - expected).abs().max() < 2e-3 * expected[0] + 1e-6, key


def test_the_answer_is_the_official_one():
    detector, _ = CASE.build()
    with torch.no_grad():
        output = CASE.predict(detector.eval())
    assert (output.logits[-1] - CASE.stored["logits"]).abs().max() < 2e-4
    assert (output.boxes[-1] - CASE.stored["boxes"]).abs().max() < 2e-5
