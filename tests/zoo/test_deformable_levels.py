"""Four levels, box refinement and two stages against another implementation's numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import detrkit
from detrkit.layers import shrink_mask
from detrkit.structures import FeatureMap
from detrkit.zoo.conversion import match
from tests.zoo.deformable_levels import fill, scene
from tests.zoo.test_deformable_names import SMALL, deformable_detr

STORED = load_file(Path(__file__).parent / "deformable_levels.safetensors")


def close(ours: torch.Tensor, name: str, limit: float) -> None:
    assert ours.shape == STORED[name].shape
    assert (ours - STORED[name]).abs().max() < limit, name


@pytest.mark.parametrize("form", ["refined", "two_stage"])
def test_four_levels_give_the_same_numbers(form):
    overrides = ["encoder.dropout=0.0", "decoder.dropout=0.0"]
    recipe = detrkit.load_recipe(f"deformable_detr_4scale_{form}_r50_50ep", [*SMALL, *overrides])
    detector = detrkit.build_detector(recipe).eval()
    found = match(fill(deformable_detr(levels=4, refined=True, two_stage=form == "two_stage")), recipe)
    missing = detector.load_state_dict(found.state, strict=False).missing_keys
    assert all(name.startswith("backbone.") for name in missing)
    maps, mask = scene()
    features = [FeatureMap(values, shrink_mask(mask, values.shape[-2:]), mask) for values in maps]
    with torch.no_grad():
        memory = detector.encoder(features)
        queries = detector.queries(memory)
        output = detector.decoder(queries, memory)
    close(memory.tokens[:, :, ::8], f"{form}/memory", 1e-4)
    start = queries.reference.point
    if form == "two_stage":
        start = torch.cat((start, queries.reference.size("the test")), dim=-1)
        proposed = queries.extras["encoder"].output
        close(proposed.logits[0, :, ::4], "two_stage/proposed_logits", 2e-4)
        close(proposed.boxes[0, :, ::4], "two_stage/proposed_boxes", 2e-5)
    close(start, f"{form}/start", 2e-5)
    close(output.logits[-1], f"{form}/logits", 2e-4)
    close(output.boxes[-1], f"{form}/boxes", 2e-5)
