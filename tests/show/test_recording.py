"""What is recorded of a decoder is what it computes."""

import pytest
import torch

import detrkit
from detrkit.attention.deformable import sample_levels
from detrkit.attention.gaussian import gaussian_center, gaussian_query
from detrkit.attention.multihead import merge_heads, split_heads
from detrkit.attention.plain import PlainCrossAttention
from detrkit.attention.row_column import RowColumnCrossAttention
from detrkit.show.recording import record_layers
from tests.small import SMALL as ANY

SMALL = [*ANY, "detector.classes=3"]
RECIPES = {
    "sap_detr_r50_50ep": (["queries.grid=[3, 4]"], ["content", "point", "side", "side_directed_gaussian", "places"]),
    "dab_detr_r50_50ep": (["queries.count=7"], ["content", "point", "places"]),
    "detr_r50_500ep": (["queries.count=7"], ["plain"]),
    "smca_detr_r50_50ep": (["queries.count=7"], ["plain", "head_gaussian"]),
    "sam_detr_smca_r50_50ep": (["queries.count=7"], ["aligned", "gaussian"]),
    "anchor_detr_r50_50ep": (["queries.points=4"], ["columns", "rows"]),
}


def recorded(name, *overrides):
    """Both layers' records of two images, of which the second is padded."""
    torch.manual_seed(0)
    detector = detrkit.build_detector(detrkit.load_recipe(name, [*SMALL, *overrides])).double().eval()
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 64:], mask[1, :, 96:] = True, True
    with torch.no_grad(), record_layers(detector.decoder) as records:
        detector(images, mask)
    assert len(records) == 2
    return records


def value_and_out(attention, memory):
    """The values [B, H, L, F] that an attention mixes, and its output projection."""
    if isinstance(attention, RowColumnCrossAttention):
        value = attention.attention.keys_and_values(memory.tokens, memory.require_axes("a test"))[2]
        return value.flatten(2, 3), attention.attention.out_proj
    if isinstance(attention, PlainCrossAttention):
        return attention.attention.values(memory.tokens), attention.attention.out_proj
    return split_heads(attention.value(memory.tokens), attention.heads), attention.out


@torch.no_grad()
@pytest.mark.parametrize("name", RECIPES)
def test_recorded_terms_give_the_layers_update(name):
    overrides, terms = RECIPES[name]
    for index, record in enumerate(recorded(name, *overrides)):
        logits = record.term_logits(list(range(record.content.shape[1])))
        assert list(logits) == [term for term in terms if index == 0 or term != "places"]
        weights = record.weights(sum(logits.values()))
        assert (weights[1][..., record.memory.mask[1]] == 0).all()
        value, out = value_and_out(record.attention, record.memory)
        assert torch.allclose(out(merge_heads(weights @ value)), record.update, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("name", ["deformable_detr_r50_50ep", "deformable_detr_4scale_refined_r50_50ep"])
def test_recorded_places_are_those_that_the_layer_reads(name):
    for record in recorded(name, "queries.count=5"):
        attention = record.attention.attention
        places, weights = record.samples(2)
        assert torch.allclose(weights.sum((1, 2)), torch.ones(2).double())
        value = attention.value(record.memory.tokens[:1])
        update = attention.out(sample_levels(value, record.memory, places[None, None], weights[None, None]))
        assert torch.allclose(update[0, 0], record.update[0, 2], atol=1e-10)


def test_hooks_end_with_the_recording():
    detector = detrkit.build_detector(detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, "queries.grid=[3, 4]"])).eval()
    with torch.no_grad():
        with record_layers(detector.decoder) as records:
            pass
        detector(torch.randn(1, 3, 64, 64))
    assert records == []


def test_gaussian_center_is_found_again():
    center, precision = torch.rand(2, 3, 9, 2).double() * 20 - 3, torch.rand(2, 3, 9, 2).double() + 0.1  # [B, H, N, 2]
    assert torch.allclose(gaussian_center(gaussian_query(center, precision, (10, 14)), (10, 14)), center)
