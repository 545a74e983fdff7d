import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detrkit.errors import DataError
from detrkit.evaluation.coco_stats import PYCOCOTOOLS, STAT_NAMES, coco_stats, fastest_evaluator

EXPECTED_NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def ground_truth(annotations, *, images=(1, 2), categories=((7, "cat"), (9, "dog"))) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": 100, "height": 100} for i in images],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def truth(identity, image, category, box, **more):
    return {"id": identity, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}


def found(image, category, box, score=0.9):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


CASE = Path(__file__).parents[1] / "coco_eval_case"
BOX = [10, 10, 50, 40]
ONE = pytest.approx(1)  # pycocotools divides by the truths plus a hair


def reference_case():
    truths = COCO()
    truths.dataset = json.loads((CASE / "gt.json").read_text())
    truths.createIndex()
    return truths, json.loads((CASE / "dt.json").read_text())


def test_reference_case(capsys):
    expected = json.loads((CASE / "expected.json").read_text())
    truths, detections = reference_case()
    capsys.readouterr()
    result = coco_stats(truths, detections)
    assert capsys.readouterr().out == ""
    for ours, theirs in zip(STAT_NAMES, EXPECTED_NAMES, strict=True):
        assert result.stats[ours] == pytest.approx(expected["stats"][theirs], abs=1e-9), ours
    for row in result.per_class:
        value = expected["per_category_AP"][str(row.category_id)]
        assert (None if value == -1 else pytest.approx(value, abs=1e-9)) == row.AP, row
    assert len(result.per_class) == 80
    assert sum(row.truths for row in result.per_class) == 839 - 9  # crowd regions are no truths
    assert result.images == 100


def crowded_case():
    """Truths and detections of many kinds: crowds, ties of scores, 120 detections an image, images without any."""
    rng = np.random.default_rng(0)

    def boxes(count):
        corner, size = rng.integers(0, 80, (count, 2)), rng.integers(2, 90, (count, 2))
        return np.concatenate((corner, size), axis=1).tolist()

    truths, detections = [], []
    for image in range(12):
        for box in boxes(int(rng.integers(0, 12))):
            area, crowd = float(box[2] * box[3]) * rng.uniform(0.5, 1), int(rng.random() < 0.1)
            truths.append(truth(len(truths), image, int(rng.integers(1, 5)), box, area=area, iscrowd=crowd))
        near = [t["bbox"] for t in truths if t["image_id"] == image] * 8
        for box in (*near, *boxes(120 if image % 3 else 0)):
            moved = (np.array(box) + rng.integers(-2, 3, 4)).clip(1).tolist()
            detections.append(found(image, int(rng.integers(1, 5)), moved, score=int(rng.integers(1, 8)) / 8))
    categories = [(number, str(number)) for number in range(1, 7)]
    return ground_truth(truths, images=range(12), categories=categories), detections


@pytest.mark.parametrize("case", [reference_case, crowded_case])
def test_the_faster_evaluator_s_numbers_are_pycocotools(case):
    pytest.importorskip("faster_coco_eval")
    assert fastest_evaluator() != PYCOCOTOOLS
    truths, detections = case()
    plain, faster = (coco_stats(truths, detections, evaluator=e) for e in (PYCOCOTOOLS, fastest_evaluator()))
    assert plain.stats["AP"] > 0
    for name, value in plain.stats.items():
        assert faster.stats[name] == (None if value is None else pytest.approx(value, rel=0, abs=1e-15)), name
    for a, b in zip(plain.per_class, faster.per_class, strict=True):
        rows = asdict(a), asdict(b)
        assert rows[0].keys() == rows[1].keys()
        for key, value in rows[0].items():
            assert rows[1][key] == (pytest.approx(value, rel=0, abs=1e-15) if isinstance(value, float) else value), key


def test_without_the_faster_evaluator_pycocotools_is_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert fastest_evaluator() == PYCOCOTOOLS


def test_class_without_truths_is_left_out_of_the_mean():
    result = coco_stats(ground_truth([truth(1, 1, 7, BOX)]), [found(1, 7, BOX), found(1, 9, BOX)])
    cat, dog = result.per_class
    assert (cat.name, cat.AP, cat.AP50, cat.truths) == ("cat", ONE, ONE, 1)
    assert (dog.name, dog.AP, dog.AP50, dog.truths, dog.detections) == ("dog", None, None, 0, 1)
    assert result.stats["AP"] == ONE
    assert result.stats["APL"] is None  # 50 x 40 is medium


def test_truth_with_the_id_zero_can_be_matched():
    assert coco_stats(ground_truth([truth(0, 1, 7, BOX)]), [found(1, 7, BOX)]).stats["AP"] == ONE


def test_truth_without_area_and_crowd_flag():
    plain = {"id": 3, "image_id": 1, "category_id": 7, "bbox": BOX}
    assert coco_stats(ground_truth([plain]), [found(1, 7, BOX)]).stats["APM"] == ONE


def test_crowd_region_is_neither_a_truth_nor_a_mistake():
    truths = ground_truth([truth(1, 1, 7, BOX), truth(2, 1, 7, [60, 60, 30, 30], iscrowd=1)])
    # The detection inside the crowd scores higher than the right one and would halve the precision.
    result = coco_stats(truths, [found(1, 7, [62, 62, 10, 10], 0.99), found(1, 7, BOX, 0.5)])
    assert result.stats["AP"] == ONE
    assert result.per_class[0].truths == 1


def test_no_detections_and_no_truths():
    nothing = coco_stats(ground_truth([truth(1, 1, 7, BOX)]), [])
    assert nothing.stats["AP"] == 0.0
    assert nothing.stats["AR100"] == 0.0
    empty = coco_stats(ground_truth([]), [found(1, 7, BOX)])
    assert set(empty.stats.values()) == {None}


def test_arguments_are_left_as_they_were():
    truths = ground_truth([truth(1, 1, 7, BOX)])
    detections = [found(1, 7, list(BOX))]
    before = json.dumps([truths.dataset, detections])
    coco_stats(truths, detections)
    assert json.dumps([truths.dataset, detections]) == before


def test_part_of_the_images():
    truths = ground_truth([truth(1, 1, 7, BOX), truth(2, 2, 7, BOX)])
    detections = [found(1, 7, BOX)]
    assert coco_stats(truths, detections).stats["AR1"] == 0.5
    part = coco_stats(truths, detections, image_ids=[1])
    assert (part.stats["AR1"], part.images, part.per_class[0].truths) == (1.0, 1, 1)


@pytest.mark.parametrize(
    ("detection", "message"),
    [(found(5, 7, BOX), "names image 5"), (found(1, 0, BOX), "names category 0")],
)
def test_detections_of_another_data_set(detection, message):
    with pytest.raises(DataError, match=message):
        coco_stats(ground_truth([truth(1, 1, 7, BOX)]), [detection])
