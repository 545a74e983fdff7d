"""Parameters and GFLOPs against the official codes' own, as the fact sheets measured them with fvcore at 800 x 1066.

GFLOPs count the encoder's attention scores ("all" or "+ scores" in the sheets), which fvcore leaves out by itself.
SAP-, DAB- and the default SMCA-DETR are held to theirs in tests/compare/test_costs.py.
"""

import pytest
import torch

import detrkit
from detrkit.compare.workload import ModelWorkload, measure_workload

SIZES = [
    # recipe, overrides, parameters in millions (all, trained), GFLOPs
    ("detr_r50_500ep", ["queries.count=100"], (41.52, 41.30), 81.3),
    ("detr_r50_500ep", [], (41.58, 41.35), 84.0),
    ("detr_r50_6layer_400q_36ep", [], (41.60, 41.38), 85.4),
    ("detr_r50_3layer_400q_36ep", [], (32.92, 32.70), 77.9),
    ("detr_dc5_r50_500ep", [], (41.58, 41.35), 177.5),
    ("conditional_detr_r50_50ep", [], (43.42, 43.20), 85.3),
    ("conditional_detr_r50_6layer_400q_36ep", [], (43.44, 43.22), 87.0),
    ("conditional_detr_r50_3layer_400q_12ep", [], (33.97, 33.75), 78.7),
    ("conditional_detr_dc5_r50_50ep", [], (43.42, 43.20), 181.0),
    ("conditional_detr_r101_50ep", [], (62.36, 62.14), 148.7),
    ("smca_detr_r50_6layer_400q_12ep", [], (41.79, 41.56), 85.5),
    ("smca_detr_r50_3layer_400q_36ep", [], (33.08, 32.86), 78.0),
    ("sam_detr_smca_r50_50ep", [], (58.35, 58.12), 96.0),
    ("sam_detr_r50_50ep", [], (58.30, 58.07), 96.0),
    ("sam_detr_smca_r50_6layer_400q_36ep", [], (58.35, 58.12), 101.3),
    ("sam_detr_smca_r50_3layer_400q_36ep", [], (41.16, 40.94), 85.8),
    ("sam_detr_smca_dc5_r50_50ep", [], (58.35, 58.12), 199.7),
    ("anchor_detr_r50_50ep", [], (37.04, 36.82), 80.8),
    ("anchor_detr_r50_6layer_400q_12ep", [], (37.04, 36.82), 82.1),
    ("anchor_detr_r50_3layer_400q_36ep", [], (30.72, 30.50), 76.3),
    ("anchor_detr_dc5_r50_50ep", [], (37.04, 36.82), 153.0),
    ("deformable_detr_r50_50ep", [], (34.07, 33.84), 76.4),
    ("deformable_detr_r50_6layer_400q_36ep", [], (34.12, 33.90), 77.3),
    ("deformable_detr_r50_3layer_400q_36ep", [], (29.23, 29.01), 73.8),
    ("deformable_detr_dc5_r50_50ep", [], (34.07, 33.84), 125.1),
    ("deformable_detr_4scale_r50_50ep", [], (40.07, 39.85), 166.0),
    ("deformable_detr_4scale_refined_r50_50ep", [], (40.85, 40.63), 166.3),
    ("dino_ss_r50_12ep", [], (40.74, 40.51), 80.8),
    ("dino_ss_r50_12ep", ["queries.type=anchor_boxes", "queries.content=learned"], (40.52, 40.29), 80.6),
    ("dino_4scale_r50_12ep", [], (46.89, 46.67), 236.8),
]

BOX_HEAD = 2 * 256 * 256 + 4 * 256  # multiply-adds for one query or token
TOKENS = {"dino_ss_r50_12ep": 25 * 34, "dino_4scale_r50_12ep": 100 * 134 + 50 * 67 + 25 * 34 + 13 * 17}


def as_fvcore(work: ModelWorkload) -> float:
    """Multiply-adds as fvcore counts: five more for each number that a norm puts out, four for one that is sampled."""
    norms = sum(work.uncounted.get(name, 0) for name in ("native_layer_norm", "native_group_norm"))
    return work.plain_form + 5 * norms + 4 * work.uncounted.get("grid_sampler_2d", 0)


def official_only(name: str, overrides: list[str]) -> int:
    """What an official code computes and we do not: boxes that it then throws away, or has already."""
    if name in TOKENS and not overrides:  # DINO's query selection: boxes of all tokens, where ours asks for the chosen
        return (TOKENS[name] - (900 if "4scale" in name else 300)) * BOX_HEAD
    if name == "deformable_detr_4scale_refined_r50_50ep":  # in the decoder to refine them, and again after it
        return 6 * 300 * BOX_HEAD
    return 0


@pytest.mark.parametrize(("name", "overrides", "millions", "gflops"), SIZES)
def test_size_is_the_official_code_s(name, overrides, millions, gflops):
    recipe = detrkit.load_recipe(name, ["backbone.pretrained=false", *overrides])
    with torch.device("meta"):
        detector = detrkit.build_detector(recipe)
    work = measure_workload(detector)
    assert (round(work.total.parameters / 1e6, 2), round(work.total.trainable / 1e6, 2)) == millions
    # The sheets round to 0.1. Of SAM-DETR, up to 0.22 % is missing for a reason that is not known.
    tolerance = {"rel": 0.0025} if name.startswith("sam_") else {"abs": 0.1}
    assert (as_fvcore(work) + official_only(name, overrides)) / 1e9 == pytest.approx(gflops, **tolerance)
