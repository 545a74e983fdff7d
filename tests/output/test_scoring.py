from dataclasses import asdict

import numpy as np
import pytest

from detrkit.errors import DataError
from detrkit.evaluation.coco_stats import PYCOCOTOOLS, coco_stats, fastest_evaluator
from detrkit.evaluation.evaluate import evaluate
from detrkit.evaluation.scoring import Parts, Scoring
from tests.output.test_coco_stats import BOX, crowded_case, found, ground_truth, reference_case, truth
from tests.output.test_evaluate import Oracle, Source


def divided(truths, detections, size):
    """The images in no order, some at a time and a third of them not at all, where they have no detections."""
    ids = np.random.default_rng(0).permutation(truths.getImgIds()).tolist()
    empty = set(ids) - {one["image_id"] for one in detections}
    ids = [image for image in ids if image not in empty or image % 3]
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield part, [one for one in detections if one["image_id"] in part]


def same(one, other):
    assert one.stats == other.stats  # to the last bit
    assert [asdict(row) for row in one.per_class] == [asdict(row) for row in other.per_class]
    assert one.images == other.images


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("case", [reference_case, crowded_case])
@pytest.mark.parametrize("faster", [False, True])
def test_parts_have_the_numbers_of_the_whole(case, faster, size):
    if faster:
        pytest.importorskip("faster_coco_eval")
    whole, apart = (fastest_evaluator(in_parts=yes) if faster else PYCOCOTOOLS for yes in (False, True))
    truths, detections = case()
    parts = Parts(truths, apart)
    for image_ids, some in divided(truths, detections, size):
        parts.add(image_ids, some)
    same(parts.result(), coco_stats(truths, detections, evaluator=whole))


def test_nothing_handed_in_is_nothing_found():
    truths = ground_truth([truth(1, 1, 7, BOX)])
    same(Parts(truths, PYCOCOTOOLS).result(), coco_stats(truths, [], evaluator=PYCOCOTOOLS))


def test_the_process_has_the_numbers_of_the_whole():
    truths, detections = crowded_case()
    with Scoring(truths) as scoring:
        for image_ids, some in divided(truths, detections, 5):
            scoring.add(image_ids, some)
        same(scoring.result(), coco_stats(truths, detections))


def test_what_goes_wrong_in_the_process_is_raised_at_the_end():
    truths = ground_truth([truth(1, 1, 7, BOX)])
    with Scoring(truths) as scoring:
        scoring.add([1], [found(1, 8, BOX)])
        scoring._process.join()  # it has ended, and nothing that comes now does harm
        scoring.add([2], [found(2, 7, BOX)])
        with pytest.raises(DataError, match="category 8"):
            scoring.result()


def test_a_process_that_was_ended_is_named():
    with Scoring(ground_truth([truth(1, 1, 7, BOX)])) as scoring:
        scoring._process.kill()
        with pytest.raises(RuntimeError, match="was memory short"):
            scoring.result()


def test_an_evaluation_with_workers_has_the_numbers_of_one_without():
    alone, beside = (evaluate(Oracle(), Source(pad=True), batch_size=2, device="cpu", workers=n) for n in (0, 1))
    same(alone, beside)
    assert alone.detections == beside.detections


def test_an_image_that_comes_twice_counts_once():
    class Twice(Source):
        def loader(self, **share):
            return super().loader(**share) * 2

    twice, once = (evaluate(Oracle(), s, batch_size=2, device="cpu", workers=1) for s in (Twice(), Source()))
    same(twice, once)
    assert twice.detections == once.detections
