"""Kinds of errors and what they cost, thresholds and confusion."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detrkit.evaluation.at_threshold import Tally, confusion, sweep, tally_classes, tally_images
from detrkit.evaluation.coco_stats import coco_stats
from detrkit.evaluation.errors import KINDS, judge

from .test_coco_stats import found, ground_truth, truth

CAT, DOG = 7, 9
HERE, APART = [10, 10, 40, 40], [60, 60, 30, 30]
SHIFTED = [30, 10, 40, 40]  # IoU 1/3 with HERE


def verdict(truths, detection):
    """What a detection is called, after one that stands in for others where it is a duplicate."""
    return judge(ground_truth(truths), [detection]).verdicts.tolist()


@pytest.mark.parametrize(
    ("box", "category", "kind"),
    [
        (HERE, CAT, "right"),
        (HERE, DOG, "classification"),
        (SHIFTED, CAT, "localisation"),
        (SHIFTED, DOG, "both"),
        (APART, CAT, "background"),
    ],
)
def test_kinds(box, category, kind):
    assert verdict([truth(1, 1, CAT, HERE)], found(1, category, box)) == [kind]


def test_second_on_an_object_is_a_duplicate_and_the_better_scored_is_right():
    judged = judge(ground_truth([truth(1, 1, CAT, HERE)]), [found(1, CAT, HERE, 0.3), found(1, CAT, HERE, 0.8)])
    assert judged.verdicts.tolist() == ["right", "duplicate"]
    assert judged.scores.tolist() == [0.8, 0.3]


def test_crowd_regions_forgive_their_class_alone():
    crowd = truth(1, 1, CAT, [0, 0, 100, 100], area=10000) | {"iscrowd": 1}
    assert verdict([crowd], found(1, CAT, HERE)) == ["ignored"]
    assert verdict([crowd], found(1, DOG, HERE)) == ["background"]


def test_missed_is_what_no_mistake_would_mend():
    truths = [truth(1, 1, CAT, HERE), truth(2, 1, DOG, APART), truth(3, 2, CAT, HERE)]
    judged = judge(ground_truth(truths), [found(1, DOG, HERE)])
    assert judged.found.tolist() == [False, False, False]
    assert judged.missed.tolist() == [False, True, True]  # the first has its box, by another name
    assert judged.counts() == dict.fromkeys(KINDS, 0) | {"classification": 1, "missed": 2}


def test_costs_by_hand():
    """Two cats and a dog; a cat is found, the other called a dog, the dog missed."""
    truths = [truth(1, 1, CAT, HERE), truth(2, 1, CAT, APART), truth(3, 2, DOG, HERE)]
    judged = judge(ground_truth(truths), [found(1, CAT, HERE, 0.9), found(1, DOG, APART, 0.8)])
    half = 51 / 101  # precision 1 up to recall 0.5
    assert judged.average_precision() == pytest.approx(half / 2)
    costs = judged.costs()
    assert costs["classification"] == pytest.approx((1 - half) / 2)
    assert costs["missed"] == pytest.approx(half - half / 2)  # nobody asks for dogs any more: only cats are left
    assert [costs[kind] for kind in ("localisation", "both", "duplicate", "background")] == [0, 0, 0, 0]


# of crowded_case, by tidecv 1.0.1; costs in points of AP50
TIDE_COUNTS = [18, 48, 7, 21, 78, 56]
TIDE_COSTS = [5.577146, 12.099920, 0.514949, 1.314493, 8.834815, 10.296057]


def crowded_case():
    """Truths and detections of all kinds, drawn by Python's own generator, whose numbers stay what they are."""
    draw = random.Random(3)
    truths, detections = [], []
    for image in range(1, 41):
        for _ in range(draw.randrange(1, 9)):
            box = [draw.uniform(0, 300), draw.uniform(0, 300), draw.uniform(20, 90), draw.uniform(20, 90)]
            truths.append(truth(len(truths) + 1, image, draw.choice([1, 2, 3]), box, area=box[2] * box[3]))
            for _ in range(draw.randrange(0, 3)):
                shift = draw.choice([0.03, 0.15, 0.4])
                near = [box[0] + draw.gauss(0, shift) * box[2], box[1] + draw.gauss(0, shift) * box[3], *box[2:]]
                category = truths[-1]["category_id"] if draw.random() < 0.8 else draw.choice([1, 2, 3])
                detections.append(found(image, category, near, draw.random()))
        detections += [
            found(image, draw.choice([1, 2, 3]), [draw.uniform(0, 300), 5, 30, 30], draw.random()) for _ in range(2)
        ]
    return ground_truth(truths, images=range(1, 41), categories=[(1, "a"), (2, "b"), (3, "c")]), detections


def test_like_tide_s_own_code():
    """Counts are tidecv 1.0.1's; its costs too, up to its recalls, which are not quite COCO's (0.29 above all)."""
    truths, detections = crowded_case()
    judged = judge(truths, detections)
    assert judged.average_precision() == pytest.approx(coco_stats(truths, detections).stats["AP50"], abs=1e-12)
    assert list(judged.counts().values()) == TIDE_COUNTS
    assert [100 * cost for cost in judged.costs().values()] == pytest.approx(TIDE_COSTS, abs=2e-3)


def test_reference_case_has_coco_s_ap50_and_tide_s_counts():
    folder = Path(__file__).parents[1] / "coco_eval_case"
    truths = COCO()
    truths.dataset = json.loads((folder / "gt.json").read_text())
    truths.createIndex()
    judged = judge(truths, json.loads((folder / "dt.json").read_text()))
    expected = json.loads((folder / "expected.json").read_text())["stats"]["AP50"]
    assert judged.average_precision() == pytest.approx(expected, abs=1e-9)
    assert list(judged.counts().values()) == [83, 1, 0, 1, 0, 97]  # tidecv 1.0.1


def test_nothing_detected_and_nothing_to_detect():
    judged = judge(ground_truth([truth(1, 1, CAT, HERE)]), [])
    assert judged.counts() == dict.fromkeys(KINDS, 0) | {"missed": 1}
    assert sweep(judged).best is None
    empty = judge(ground_truth([]), [found(1, CAT, HERE)])
    assert empty.counts()["background"] == 1
    assert empty.costs() == dict.fromkeys(KINDS, 0.0)
    assert sweep(empty).best is None


def test_sweep_takes_all_detections_of_a_score_at_once():
    truths = ground_truth([truth(1, 1, CAT, HERE), truth(2, 2, CAT, HERE)])
    detections = [
        found(1, CAT, HERE, 0.9),
        found(1, CAT, APART, 0.5),
        found(2, CAT, HERE, 0.5),
        found(2, CAT, APART, 0.1),
    ]
    swept = sweep(judge(truths, detections))
    assert swept.thresholds.tolist() == [0.9, 0.5, 0.1]
    assert swept.precision.tolist() == pytest.approx([1, 2 / 3, 1 / 2])
    assert swept.recall.tolist() == [0.5, 1, 1]
    assert swept.f1.tolist() == pytest.approx([2 / 3, 0.8, 2 / 3])
    assert swept.best == 0.5


def test_tallies_add_up_to_truths_and_detections():
    truths, detections = crowded_case()
    judged = judge(truths, detections)
    kept = [one for one in detections if one["score"] >= 0.4]
    for tallies in (tally_classes(judged, 0.4), tally_images(judged, 0.4)):
        assert sum(tally.right + tally.wrong for tally in tallies.values()) == len(kept)
        assert sum(tally.right + tally.missed for tally in tallies.values()) == len(truths.dataset["annotations"])
    assert Tally(0, 0, 0).f1 is None
    assert (Tally(1, 1, 2).precision, Tally(1, 1, 2).recall, Tally(1, 1, 2).f1) == (1 / 2, 1 / 3, 2 / 5)


def test_confusion_pairs_by_place_alone():
    crowd = truth(4, 2, CAT, [0, 0, 100, 100], area=10000) | {"iscrowd": 1}
    truths = ground_truth([truth(1, 1, CAT, HERE), truth(2, 1, DOG, APART), truth(3, 2, DOG, HERE), crowd])
    detections = [
        found(1, DOG, HERE, 0.9),  # a cat taken for a dog
        found(1, CAT, HERE, 0.2),  # too weak to count
        found(1, DOG, [61, 60, 30, 30], 0.8),
        found(1, DOG, APART, 0.7),  # fits better than the one before, which is left with nothing
        found(2, CAT, [70, 0, 20, 20], 0.9),  # in a crowd region
    ]
    table = confusion(truths, detections, [CAT, DOG], 0.5)
    assert table.tolist() == [[0, 1, 0], [0, 1, 1], [0, 1, 0]]
    assert table.dtype == np.int64
