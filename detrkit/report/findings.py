"""What a report tells of an evaluation, gathered from its detections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO

from detrkit.data import Dataset
from detrkit.data.records import MEDIUM, SMALL
from detrkit.drawing.faults import Faults
from detrkit.evaluation.at_threshold import Tally, confusion, sweep, tally_classes, tally_images
from detrkit.evaluation.coco_stats import EvalResult
from detrkit.evaluation.errors import judge
from detrkit.report.page import Findings, Shown
from detrkit.report.pictures import draw_image, worst_and_best

FALLBACK = 0.3  # the threshold where nothing is right at any


def gather(
    result: EvalResult,
    dataset: Dataset,
    *,
    threshold: float | None,
    images: int,
    faults: Faults,
    each: Callable[[Sequence[int]], Iterable[int]] = lambda ids: ids,
) -> Findings:
    """Kinds of errors, thresholds, confusion, and the worst and best images.

    Args:
        result: with its detections
        dataset: the split that was evaluated
        threshold: the lowest score that counts in what is no average precision; the one with the best F1 if None
        images: how many of the worst and of the best are drawn
        faults: gets those that cannot be
        each: goes through the ids of the images that are drawn: for a progress bar
    """
    truth = dataset.ground_truth()
    judged = judge(truth, result.detections)
    swept = sweep(judged)
    at = threshold if threshold is not None else typed(swept.best)
    categories = dataset.real_categories
    tallies = tally_images(judged, at)
    worst, best = worst_and_best(tallies, images)
    drawn = {one: _shown(dataset, one, tallies[one], result.detections, at, faults) for one in each([*worst, *best])}
    return Findings(
        result=result,
        categories=categories,
        truths_by_size=_sizes(truth),
        counts=judged.counts(),
        costs=judged.costs(),
        swept=swept,
        threshold=at,
        chosen=threshold is not None,
        by_class=tally_classes(judged, at),
        confusion=confusion(truth, result.detections, [category.id for category in categories], at),
        worst=[drawn[one] for one in worst],
        best=[drawn[one] for one in best],
    )


def typed(best: float | None) -> float:
    """A threshold that a person can type, the best or a little less, to two digits; `FALLBACK` if there is none."""
    if best is None:
        return FALLBACK
    scale = 100 if best >= 0.1 or best <= 0 else 10 ** (1 - math.floor(math.log10(best)))  # 0.0098, not 0.00
    return math.floor(round(scale * best, 6)) / scale  # 100 * 0.29 is less than 29


def _shown(
    dataset: Dataset, image_id: int, tally: Tally, detections: Sequence[Mapping], threshold: float, faults: Faults
) -> Shown:
    records = dataset.records
    name = records.file_names[np.searchsorted(records.image_ids, image_id)]
    title = f"{name or 'image'} ({records.given_id(image_id)})"
    own = [one for one in detections if one["image_id"] == image_id]
    names = [category.name for category in dataset.labels.categories]
    return Shown(title, tally, faults.draw(title, lambda: draw_image(dataset, image_id, own, names, threshold)))


def _sizes(truth: COCO) -> list[int]:
    areas = np.array([one["area"] for one in truth.dataset["annotations"] if not one["iscrowd"]], dtype=np.float64)
    small, medium = int((areas < SMALL).sum()), int((areas < MEDIUM).sum())
    return [small, medium - small, len(areas) - medium]
