"""Deformable DETR's and DINO's sizes against the official code's own (shared/methods, "Measured")."""

import pytest
import torch

import detrkit
from detrkit.report.workload import measure_workload

# recipe: trainable and all parameters in millions, GFLOPs at 800 x 1066. fvcore counts as we do, with two differences:
# for Deformable DETR it counted the bilinear sampling too (1.8 at four levels); and it runs the box head of DINO's
# query selection on every token, where ours asks it about the chosen ones alone (2.3 at four levels).
MEASURED = {
    "deformable_detr_r50_50ep": (33.84, 34.07, 76.4),
    "deformable_detr_r50_6layer_400q_36ep": (33.90, 34.12, 77.3),
    "deformable_detr_r50_3layer_400q_36ep": (29.01, 29.23, 73.8),
    "deformable_detr_dc5_r50_50ep": (33.84, 34.07, 125.1),
    "deformable_detr_4scale_r50_50ep": (39.85, 40.07, 166.0),
    "deformable_detr_4scale_refined_r50_50ep": (40.63, 40.85, 166.3),
    "dino_ss_r50_12ep": (40.51, 40.74, 80.8),
    "dino_4scale_r50_12ep": (46.67, 46.89, 236.8),
}
LABEL_TABLE = 92 * 256  # of contrastive denoising, which the official counts hold


def measured(name: str, *overrides: str):
    recipe = detrkit.load_recipe(name, ["backbone.pretrained=false", *overrides])
    with torch.device("meta"):
        detector = detrkit.build_detector(recipe)
    absent = name.startswith("dino") and not recipe.get("blocks.denoising", None)
    return measure_workload(detector).total, LABEL_TABLE if absent else 0


@pytest.mark.parametrize("name", MEASURED)
def test_parameters_and_gflops(name):
    trainable, everything, gflops = MEASURED[name]
    total, absent = measured(name)
    assert (total.trainable + absent) / 1e6 == pytest.approx(trainable, abs=0.0051)
    assert (total.parameters + absent) / 1e6 == pytest.approx(everything, abs=0.0051)
    assert total.multiply_adds / 1e9 == pytest.approx(gflops, rel=0.02)


def test_dino_without_query_selection():
    total, absent = measured("dino_ss_r50_12ep", "queries.type=anchor_boxes", "queries.content=learned")
    assert (total.trainable + absent) / 1e6 == pytest.approx(40.29, abs=0.0051)
    assert (total.parameters + absent) / 1e6 == pytest.approx(40.52, abs=0.0051)
    assert total.multiply_adds / 1e9 == pytest.approx(80.6, rel=0.02)
