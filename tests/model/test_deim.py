"""DEIM's RT-DETR against its official code: every loss in training, every gradient, and the answer.

`deim_rt_detr.safetensors` holds them, for a small detector without backbone whose weights and features follow rules
(`official_case.py`), with the noise that was drawn. Its metadata names the code.
"""

from tests.model.official_case import Case

CASE = Case("deim_rt_detr", "rt_detr_deim_r50_60ep", ["encoder.layers=1", "blocks.denoising.count=4"], padded=False)
NAMES = {"class": "loss_mal", "box": "loss_bbox", "giou": "loss_giou"}


def official_name(name):
    """What the official code calls one of our losses."""
    extra, _, term = name.rpartition("/")
    kind, _, layer = term.partition(".")
    ends = {"": f"_aux_{layer}" if layer else "", "encoder": "_enc_0", "denoising": f"_dn_{layer or 2}"}
    return NAMES[kind] + ends[extra]


def test_every_official_tensor_finds_its_place():
    assert CASE.placed() == {name for name in CASE.official if not name.endswith("num_points_scale")}


def test_a_training_step_is_the_official_one():
    detector, criterion = CASE.build()
    detector.train().blocks["denoising"].draw = CASE.draws
    losses = criterion(CASE.predict(detector), CASE.targets)
    CASE.check_losses(losses, official_name)
    losses["total"].backward()
    CASE.check_gradients(detector)


def test_the_answer_is_the_official_one():
    CASE.check_answer(CASE.build()[0])
