"""Relation DETR against its official code: every loss in training, every gradient, and the answer.

`relation_detr.safetensors` holds them, for a small detector without backbone whose weights and features follow rules
(`official_case.py`), with the noise that was drawn. Its metadata names the code.
"""

import pytest
import torch

from tests.model.official_case import Case, probe

CASE = Case("relation_detr", "relation_detr_r50_12ep", ["blocks.hybrid.count=12", "blocks.denoising.count=4"])
NAMES = {"class": "loss_class", "box": "loss_bbox", "giou": "loss_giou"}
ENDS = {"": "", "encoder": "_enc", "denoising": "_dn", "hybrid": "_hybrid", "hybrid_encoder": "_enc_hybrid"}


def official_name(name):
    """What the official code calls one of our losses."""
    extra, _, term = name.rpartition("/")
    kind, _, layer = term.partition(".")
    ends = [ENDS[extra], f"_{layer}" if layer else ""]
    return NAMES[kind] + "".join(reversed(ends) if extra == "hybrid" else ends)


def test_every_official_tensor_finds_its_place():
    found = CASE.conversion()
    assert not found.unexpected
    assert not found.mismatched
    assert all(name.startswith("backbone.") for name in found.missing)
    assert set(found.names) == set(CASE.official)


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
    for name in CASE.official:
        gradient = detector.get_parameter(ours[name]).grad
        if "label_encoder" in name:
            gradient = gradient[:-1]
        found, official = probe(name, gradient.view(CASE.official[name].shape)), CASE.stored[f"g.{name}"]
        assert (found - official).abs().max() < 2e-3 * official[0] + 1e-6, name


def test_the_answer_is_the_official_one():
    detector, _ = CASE.build()
    with torch.no_grad():
        output = CASE.predict(detector.eval())
    assert (output.logits[-1] - CASE.stored["logits"]).abs().max() < 2e-4
    assert (output.boxes[-1] - CASE.stored["boxes"]).abs().max() < 2e-5
