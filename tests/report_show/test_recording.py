"""What is recorded of a decoder is what it computes."""

import pytest
import torch

import detrkit
from detrkit.attention.gaussian import gaussian_center, gaussian_query
from detrkit.attention.multihead import merge_heads, split_heads
from detrkit.report.recording import record_layers
from tests.small import SMALL as ANY

SMALL = [*ANY, "detector.classes=3"]
RECIPES = {"sap_detr_r50_50ep": "queries.grid=[3, 4]", "dab_detr_r50_50ep": "queries.count=7"}


@pytest.mark.parametrize("name", RECIPES)
def test_recorded_terms_give_the_layers_update(name):
    torch.manual_seed(0)
    detector = detrkit.build_detector(detrkit.load_recipe(name, [*SMALL, RECIPES[name]])).double().eval()
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 64:], mask[1, :, 96:] = True, True
    with torch.no_grad(), record_layers(detector.decoder) as records:
        detector(images, mask)
    assert len(records) == 2
    for index, record in enumerate(records):
        logits = record.term_logits(list(range(record.content.shape[1])))
        assert ("places" in logits) == (index == 0)
        assert set(record.attention.terms) <= set(logits)
        weights = record.weights(sum(logits.values()))
        assert (weights[1][..., record.memory.mask[1]] == 0).all()
        value = split_heads(record.attention.value(record.memory.tokens), record.attention.heads)
        update = record.attention.out(merge_heads(weights @ value))
        assert torch.allclose(update, record.update, atol=1e-10)


def test_hooks_end_with_the_recording():
    detector = detrkit.build_detector(detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, "queries.grid=[3, 4]"])).eval()
    with torch.no_grad():
        with record_layers(detector.decoder) as records:
            pass
        detector(torch.randn(1, 3, 64, 64))
    assert records == []


def test_gaussian_center_is_found_again():
    center, precision = torch.rand(9, 2).double() * 20 - 3, torch.rand(9, 2).double() + 0.1
    assert torch.allclose(gaussian_center(gaussian_query(center, precision, (10, 14)), (10, 14)), center)
