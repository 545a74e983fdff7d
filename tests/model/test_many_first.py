"""Layers that look at the memory first, against MS-DETR's decoder, and what trains their one-to-many predictions.

`many_first.safetensors` holds a decoder of three layers on two levels with its weights, what it predicts of six queries
in training for the answer (and as "many." for the other), and gradients of logits^2 + 10 boxes^2, the others twice.
Its metadata names the code.
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from detrkit.zoo.families import FAMILIES
from tests.model.official_decoder import official_decoder, stored_inputs
from tests.model.test_detector import batch, small

STORED = load_file(Path(__file__).parent / "many_first.safetensors")
MANY = ["decoder.many_first=true", "blocks.mixed={type='mixed', source='decoder'}"]


def ours(name: str) -> str:
    """Our name for a weight or a gradient of the official decoder."""
    whole = name[2:] if "_embed." in name else f"transformer.decoder.{name[2:]}"
    return FAMILIES["deformable_detr"].ours(whole).removeprefix("decoder.")


def test_the_decoder_is_ms_detr_s():
    decoder = official_decoder(eps=1e-5, many_first=True).train()
    decoder.load_state_dict({ours(name): value for name, value in STORED.items() if name.startswith("w.")})
    queries, memory = stored_inputs(STORED, decoder)
    output = decoder(queries, memory)
    for name, found in (
        ("logits", output.logits),
        ("boxes", output.boxes),
        ("many.logits", output.many.logits),
        ("many.boxes", output.many.boxes),
    ):
        assert (found - STORED[name]).abs().max() < (1e-5 if "boxes" in name else 1e-4), name
    total = output.logits.square().sum() + 10 * output.boxes.square().sum()
    (total + 2 * output.many.logits.square().sum() + 20 * output.many.boxes.square().sum()).backward()
    for name, official in STORED.items():
        if name.startswith("g."):
            found = decoder.get_parameter(ours(name)).grad
            assert (found - official).abs().max() < 1e-3 * official.abs().max(), name
    answer = decoder.eval()(queries, memory)
    assert answer.many is None
    assert (answer.logits - STORED["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sap_dn_r50_12ep", []),
        ("group_detr_r50_12ep", ["blocks.groups.count=2"]),
        ("dino_4scale_r50_12ep", ["decoder.ranked=900"]),
    ],
)
def test_other_systems_learn_from_them(name, overrides):
    detector, criterion = small(name, "encoder.layers=1", "decoder.layers=2", *MANY, *overrides)
    images, mask, targets = batch()
    output = detector.train()(images, mask, targets)
    losses = criterion(output, targets)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert losses["mixed/class"] > 0
    assert output.extras["mixed"].output.logits.shape == output.logits.shape
    early = detector.decoder.layers[0].many_first
    assert all(p.grad is not None and p.grad.any() for p in early.parameters())
    assert len(detector.blocks["mixed"].state_dict()) == 0
