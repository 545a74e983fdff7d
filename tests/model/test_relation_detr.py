"""Relation DETR against its official code: every loss in training, every gradient, and the answer.

`relation_detr.safetensors` holds them, for a small detector without backbone whose weights and features follow rules
(`official_case.py`), with the noise that was drawn. Its metadata names the code.
"""

from tests.model.official_case import Case

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
    assert CASE.placed() == CASE.official.keys()


def test_a_training_step_is_the_official_one():
    detector, criterion = CASE.build()
    detector.train().blocks["denoising"].draw = CASE.draws
    losses = criterion(CASE.predict(detector), CASE.targets)
    CASE.check_losses(losses, official_name)
    losses["total"].backward()
    assert CASE.held == set(CASE.official)
    CASE.check_gradients(detector)


def test_the_answer_is_the_official_one():
    CASE.check_answer(CASE.build()[0])
