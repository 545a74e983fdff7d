"""Parameters and multiply-adds of the shipped recipes against those of the official codes (by their fact sheets)."""

from functools import cache

import pytest
import torch
from torch import nn

from detrkit.compare.costs import coco_sizes, count_costs, for_counting
from detrkit.compare.timing import HeldMemory, measure_timings
from detrkit.errors import UserError
from detrkit.recipe import load_recipe

OFFICIAL = {  # million parameters, all and trained; GFLOPs at 800 x 1066 with attention counted
    "sap_detr_r50_50ep": (50.39, 50.17, 90.2),
    "sap_detr_r50_3layer_400q_12ep": (38.52, 38.30, 82.2),
    "dab_detr_r50_50ep": (43.67, 43.45, 86.6),
    "smca_detr_r50_50ep": (41.76, 41.54, 84.0),
}


@cache
def full_size(name):
    return count_costs({name: load_recipe(name)}, height=800, width=1066)[name].work


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameters_and_work_are_the_official_ones(name):
    parameters, trained, gflops = OFFICIAL[name]
    work = full_size(name)
    assert round(work.total.parameters / 1e6, 2) == parameters
    assert round(work.total.trainable / 1e6, 2) == trained
    assert work.plain_form / 1e9 == pytest.approx(gflops, abs=0.1)
    assert work.total.multiply_adds / 1e9 == pytest.approx(gflops, rel=0.02)


def test_the_saving_of_shared_keys_and_the_cost_of_zeros_are_told():
    sap = full_size("sap_detr_r50_50ep")
    pairs = 6 * 306 * (25 * 34) * 8  # layers, queries, cells, heads
    assert sap.saved == pairs * 32  # the side term needs no copy of the position keys
    assert sap.zeros == pairs * (4 + 40)  # 68 channels are filled to 72, and so are the 32 of the values
    assert full_size("dab_detr_r50_50ep").saved == 0
    pairs = 6 * 300 * (25 * 34) * 8
    smca = full_size("smca_detr_r50_50ep")
    assert (smca.saved, smca.zeros) == (0, pairs * (4 + 8))  # 36 channels are filled to 40, and so are the values
    sam = full_size("sam_detr_smca_r50_50ep")
    assert (sam.saved, sam.zeros) == (0, pairs * 4)  # 260 channels are filled to 264, too wide for the values
    assert full_size("detr_r50_500ep").zeros == 0


def test_the_sizes_are_those_of_cocos_first_hundred_images():
    sizes = coco_sizes()
    assert sum(sizes.values()) == 100
    assert sum(h * w * n for (h, w), n in sizes.items()) / 100 == pytest.approx(888_477, abs=1)


def test_what_differs_in_training_alone_is_counted_once():
    counted = []
    recipes = {
        "a": load_recipe("quickstart"),
        "b": load_recipe("quickstart", ["train.epochs=9", "data.train_images=10"]),
        "c": load_recipe("quickstart", ["decoder.layers=1"]),
    }
    costs = count_costs(recipes, height=64, width=64, progress=lambda: counted.append(1))
    assert costs["a"] is costs["b"]
    assert costs["a"].work.total.parameters > costs["c"].work.total.parameters
    assert costs["a"].assumed_classes is None  # the shapes are at hand
    assert len(counted) == 3


def test_classes_are_the_data_sets_or_cocos_where_that_is_not_here(tmp_path):
    shapes = load_recipe("quickstart", ["data.classes=['bar', 'ring']"])
    coco = load_recipe("quickstart", ["data.type=coco", f"data.root={tmp_path}"])
    assert for_counting(shapes)[0].get("detector.classes") == 2
    counted, assumed = for_counting(coco)
    assert counted.get("detector.classes") == assumed == 80


def test_a_recipe_whose_parts_do_not_go_together_is_named_and_left_out():
    broken = load_recipe("quickstart", ["geometry.type=point"])
    recipes = {"broken": broken, "sound": load_recipe("quickstart")}
    faults = {}
    assert list(count_costs(recipes, height=64, width=64, faults=faults)) == ["sound"]
    assert "needs references with sides" in str(faults["broken"])
    with pytest.raises(UserError, match=r"^broken: .*needs references with sides"):
        count_costs(recipes, height=64, width=64)


def test_held_memory_is_the_worst_moment():
    with torch.inference_mode(), HeldMemory() as held:
        first = torch.ones(1000)
        second = first + 1
        assert held.now == 8000
        del first
        third = second * 2  # as much as before: the first is gone
        view = third.view(10, 100)
        assert (held.now, held.peak) == (8000, 8000)
        del second, third
        assert held.now == 4000  # the view keeps its storage
        del view
    assert (held.now, held.peak) == (0, 8000)


def test_time_is_measured_of_every_recipe():
    recipes = {
        name: load_recipe("quickstart", said) for name, said in {"one": ["decoder.layers=1"], "three": []}.items()
    }
    calls = []
    timings = measure_timings(recipes, height=64, width=96, rounds=3, warmup=1, progress=lambda: calls.append(1))
    assert list(timings) == ["one", "three"]
    assert len(calls) == 2 * (3 + 1)
    for timing in timings.values():
        assert len(timing.milliseconds) == 3
        assert timing.precision == "fp32" or torch.cuda.is_available()
    costs = count_costs(recipes, height=64, width=64)
    weights = {name: cost.work.total.parameters for name, cost in costs.items()}
    assert timings["one"].memory > 4 * weights["one"]
    assert timings["three"].memory > timings["one"].memory


def test_the_work_of_a_model_without_terms_has_no_other_form():
    from detrkit.compare.workload import measure_workload

    work = measure_workload(nn.Conv2d(3, 4, 1), height=8, width=8)
    assert work.plain_form == work.total.multiply_adds == 8 * 8 * 3 * 4
