"""COCO's numbers and the costs of error kinds on resampled images: matched once, then counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrkit.evaluation.coco_stats import STAT_NAMES, evaluate_boxes
from detrkit.evaluation.errors import KINDS, Judgement, judge
from detrkit.evaluation.ranking import Ranking, mean_over_classes

PRECISIONS = STAT_NAMES[:6]
AT_ONCE = 4_000_000  # numbers in the largest array


@dataclass(frozen=True)
class RankedDetections:
    """What a detector found on I images, ready to be counted on any resample of them.

    by_size: of all, small, medium and large objects, for each of K classes the rankings at the ten IoUs.
    by_kind: by "" for AP50 as it is, and by each kind of errors for AP50 with that kind put right: a ranking for each
        class.
    """

    images: int
    by_size: tuple[tuple[tuple[Ranking, ...], ...], ...]
    by_kind: Mapping[str, tuple[Ranking, ...]]

    def stats(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`PRECISIONS` and the costs of `KINDS`, each [R] in 0..1; nan where a resample holds no such object.

        They are those of a data set in which each image is that many times; only detections of one image with one
        score may stand in another order there.

        Args:
            weights: [R, I] int64, how many times each image is in each of R resamples, in the order of image ids
        """
        rows = max(1, AT_ONCE // max(1, self._longest))
        parts = [self._stats(weights[start : start + rows]) for start in range(0, len(weights), rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def plain(self) -> dict[str, float]:
        """The same of the images as they are."""
        found = self.stats(np.ones((1, self.images), dtype=np.int64))
        return {name: float(value[0]) for name, value in found.items()}

    @property
    def _longest(self) -> int:
        every = [one for size in self.by_size for of_class in size for one in of_class]
        every += [one for of_kind in self.by_kind.values() for one in of_kind]
        return max((len(one.images) for one in every), default=0)

    def _stats(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        every, *sizes = [self._table(of_size, weights) for of_size in self.by_size]  # [R, K, IoUs]
        tables = [every, every[..., 0], every[..., 5], *sizes]
        found = {name: mean_over_classes(table) for name, table in zip(PRECISIONS, tables, strict=True)}
        precision = {kind: self._table([of_kind], weights) for kind, of_kind in self.by_kind.items()}
        at_50 = {kind: mean_over_classes(table) for kind, table in precision.items()}
        # Put right, a kind may leave no class with truths, which counts as AP 0, as `Judgement.costs` has it.
        costs = {kind: np.maximum(0.0, np.nan_to_num(at_50[kind]) - at_50[""]) for kind in KINDS}
        return found | costs

    @staticmethod
    def _table(rankings: Sequence[Sequence[Ranking]], weights: np.ndarray) -> np.ndarray:
        rows = [np.stack([one.average_precision(weights) for one in row], axis=1) for row in rankings if row]
        return np.stack(rows, axis=1) if rows else np.full((len(weights), 0), np.nan)


def resamples(images: int, count: int, seed: int) -> np.ndarray:
    """[count, images] int64: how many times each image is drawn when as many as there are are drawn with replacement.

    The same numbers give the same draws.
    """
    drawn = np.random.default_rng(seed).integers(images, size=(count, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn])


def rank_detections(ground_truth: COCO, detections: Sequence[dict]) -> RankedDetections:
    """Match and rank detections as pycocotools does.

    Args:
        ground_truth: the truths of all images that were evaluated
        detections: COCO results (image_id, category_id, bbox [x, y, width, height], score), in any order

    Raises:
        DataError: a detection names an image or a category that the ground truth does not have
    """
    evaluation = evaluate_boxes(ground_truth, detections)
    sizes = range(len(evaluation.params.areaRng))
    classes = range(len(evaluation.params.catIds))
    judgement = judge(ground_truth, detections)
    return RankedDetections(
        images=len(evaluation.params.imgIds),
        by_size=tuple(tuple(_at_each_iou(evaluation, label, size) for label in classes) for size in sizes),
        by_kind={kind: _mended(judgement, kind, evaluation.params.imgIds) for kind in ("", *KINDS)},
    )


def _at_each_iou(evaluation: COCOeval, label: int, size: int) -> tuple[Ranking, ...]:
    """A ranking for each IoU of what COCOeval matched, for one class and range of areas."""
    parameters = evaluation.params
    count = len(parameters.imgIds)
    first = (label * len(parameters.areaRng) + size) * count
    cells = evaluation.evalImgs[first : first + count]  # an image that has neither truths nor detections is None
    truths = np.array([0 if cell is None else int((~cell["gtIgnore"].astype(bool)).sum()) for cell in cells])
    kept = [(place, cell) for place, cell in enumerate(cells) if cell is not None]
    ious = len(parameters.iouThrs)
    scores = np.concatenate([np.empty(0), *(np.array(cell["dtScores"], dtype=float) for _, cell in kept)])
    images = np.repeat([place for place, _ in kept], [len(cell["dtScores"]) for _, cell in kept]).astype(int)
    empty = np.empty((ious, 0), dtype=bool)
    matched = np.concatenate([empty, *(cell["dtMatches"] > 0 for _, cell in kept)], axis=1)
    ignored = np.concatenate([empty, *(cell["dtIgnore"].astype(bool) for _, cell in kept)], axis=1)
    return tuple(
        Ranking.of(scores[~ignored[at]], matched[at, ~ignored[at]], images[~ignored[at]], truths) for at in range(ious)
    )


def _mended(judgement: Judgement, kind: str, image_ids: Sequence[int]) -> tuple[Ranking, ...]:
    """A ranking at IoU 0.5 for each class that has truths, with one kind of errors put right."""
    return tuple(judgement.rankings(kind or None, np.array(image_ids)))
