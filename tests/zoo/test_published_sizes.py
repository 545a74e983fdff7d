"""Parameters and GFLOPs against those of the official codes, as the fact sheets measured them at 800 x 1066.

GFLOPs count the encoder's attention scores ("all" or "+ scores" in the sheets), which fvcore leaves out by itself.
"""

import pytest
import torch

import detrkit
from detrkit.report.workload import measure_workload

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
    ("smca_detr_r50_50ep", [], (41.76, 41.54), 84.0),
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
]


@pytest.mark.parametrize(("name", "overrides", "millions", "gflops"), SIZES)
def test_size_is_the_official_code_s(name, overrides, millions, gflops):
    recipe = detrkit.load_recipe(name, ["backbone.pretrained=false", *overrides])
    with torch.device("meta"):
        detector = detrkit.build_detector(recipe)
    total = measure_workload(detector).total
    counted = (round(total.parameters / 1e6, 2), round(total.trainable / 1e6, 2))
    assert counted == pytest.approx(millions, abs=0.0101)
    assert total.multiply_adds / 1e9 == pytest.approx(gflops, rel=0.02)
