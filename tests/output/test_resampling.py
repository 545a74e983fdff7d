"""AP and costs of errors on resampled images, against pycocotools on images that are there several times."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detrkit.evaluation.coco_stats import coco_stats
from detrkit.evaluation.errors import KINDS, judge
from detrkit.evaluation.resampling import PRECISIONS, rank_detections, resamples

from .test_coco_stats import found, ground_truth, truth
from .test_errors import crowded_case


def reference_case():
    folder = Path(__file__).parents[1] / "coco_eval_case"
    truths = COCO()
    truths.dataset = json.loads((folder / "gt.json").read_text())
    truths.createIndex()
    return truths, json.loads((folder / "dt.json").read_text())


def copied(truths, detections, times):
    """The same with each image as often as `times` says, under ids of their own."""
    ids = sorted(truths.getImgIds())
    drawn = enumerate(zip(ids, times, strict=True))
    copies = {image: [1000 * place + copy for copy in range(n)] for place, (image, n) in drawn}
    coco = COCO()
    annotations = [
        {**one, "image_id": copy} for one in truths.dataset["annotations"] for copy in copies[one["image_id"]]
    ]
    coco.dataset = {
        "images": [{"id": copy} for group in copies.values() for copy in group],
        "categories": truths.dataset["categories"],
        "annotations": [{**one, "id": number} for number, one in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco, [{**one, "image_id": copy} for one in detections for copy in copies[one["image_id"]]]


def expected(truths, detections):
    """The same numbers by pycocotools, and by the judgement of each image anew."""
    stats = coco_stats(truths, detections).stats
    return {name: math.nan if stats[name] is None else stats[name] for name in PRECISIONS} | judge(
        truths, detections
    ).costs()


@pytest.mark.parametrize("case", [reference_case, crowded_case])
def test_images_as_they_are_give_pycocotools_numbers(case):
    truths, detections = case()
    plain = rank_detections(truths, detections).plain()
    assert list(plain) == [*PRECISIONS, *KINDS]
    assert plain == pytest.approx(expected(truths, detections), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("case", [reference_case, crowded_case])
def test_resampled_images_give_pycocotools_numbers_of_copies(case, monkeypatch):
    truths, detections = case()
    detections = [{**one, "score": one["score"] - 1e-9 * n} for n, one in enumerate(detections)]  # no two alike
    ranked = rank_detections(truths, detections)
    weights = resamples(ranked.images, 3, seed=5)
    monkeypatch.setattr("detrkit.evaluation.resampling.AT_ONCE", 1)  # a resample at a time
    values = ranked.stats(weights)
    for row, times in enumerate(weights):
        here = {name: value[row] for name, value in values.items()}
        assert here == pytest.approx(expected(*copied(truths, detections, times)), abs=1e-9, nan_ok=True)


def test_classes_and_sizes_that_a_resample_has_not_are_left_out():
    small, large = [5, 5, 20, 20], [0, 0, 98, 98]
    truths = ground_truth([truth(1, 1, 7, small), truth(2, 2, 9, large)], images=(1, 2, 3))
    ranked = rank_detections(truths, [found(1, 7, small), found(1, 9, large)])
    values = ranked.stats(np.array([[3, 0, 0], [1, 1, 1], [0, 0, 3], [0, 2, 1]]))
    assert values["AP"] == pytest.approx([1, 0.5, np.nan, 0], nan_ok=True)
    assert values["APS"] == pytest.approx([1, 1, np.nan, np.nan], nan_ok=True)
    assert values["APL"] == pytest.approx([np.nan, 0, np.nan, 0], nan_ok=True)


def test_nothing_detected():
    truths = ground_truth([truth(1, 1, 7, [5, 5, 20, 20])])
    plain = rank_detections(truths, []).plain()
    assert (plain["AP"], plain["missed"]) == (0, 0)  # no cost: without that class there is nothing left to measure
    assert math.isnan(plain["APL"])


def test_resamples_are_draws_with_replacement_and_the_same_every_time():
    weights = resamples(40, 500, seed=0)
    assert weights.shape == (500, 40)
    assert (weights.sum(axis=1) == 40).all()
    assert weights.var() == pytest.approx(1 - 1 / 40, abs=0.03)  # of a binomial count
    assert (weights == resamples(40, 500, seed=0)).all()
    assert (weights != resamples(40, 500, seed=1)).any()
