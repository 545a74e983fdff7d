"""How good detections are from a score on: precision and recall over thresholds, by class, by image, and confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from detrkit.evaluation.errors import FOUND, IGNORED, RIGHT, Judgement, overlaps


@dataclass(frozen=True)
class Sweep:
    """Precision, recall and F1 in [0, 1] of all detections from each of S scores on, at IoU 0.5."""

    thresholds: np.ndarray
    """[S] the scores that occur, falling"""
    precision: np.ndarray
    """[S]"""
    recall: np.ndarray
    """[S]"""

    @property
    def f1(self) -> np.ndarray:
        """[S]"""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)

    @property
    def best(self) -> float | None:
        """The threshold with the highest F1; None where nothing is right at any."""
        return float(self.thresholds[self.f1.argmax()]) if len(self.thresholds) and self.f1.max() > 0 else None


@dataclass(frozen=True)
class Tally:
    """What was found from a score on. right: detections, and so truths; wrong: detections; missed: truths."""

    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float | None:
        """In [0, 1]; None where nothing was detected."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None

    @property
    def recall(self) -> float | None:
        """In [0, 1]; None where there was nothing to find."""
        return self.right / (self.right + self.missed) if self.right + self.missed else None

    @property
    def f1(self) -> float | None:
        """In [0, 1]; None where there was nothing to find and nothing was detected."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else None


def sweep(judgement: Judgement) -> Sweep:
    """Precision and recall over all thresholds; detections in crowd regions do not count."""
    counted = judgement.verdicts != IGNORED
    scores, right = judgement.scores[counted], judgement.verdicts[counted] == RIGHT
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last = np.append(np.diff(scores) != 0, True)[: len(scores)]  # of each score: all of its detections are in
    kept = np.arange(1, len(scores) + 1)[last]
    return Sweep(scores[last], hits[last] / kept, hits[last] / max(1, len(judgement.found)))


def tally_classes(judgement: Judgement, threshold: float) -> dict[int, Tally]:
    """By category id, of the classes that have truths or detections."""
    return _tallies(judgement, threshold, judgement.category_ids, judgement.truth_categories)


def tally_images(judgement: Judgement, threshold: float) -> dict[int, Tally]:
    """By image id, of the images that have truths or detections."""
    return _tallies(judgement, threshold, judgement.image_ids, judgement.truth_images)


def confusion(
    ground_truth: COCO, detections: Sequence[Mapping], categories: Sequence[int], threshold: float
) -> np.ndarray:
    """[K + 1, K + 1] int64: how often a truth of a class (row) was detected as a class (column).

    Truths and detections are paired whatever their classes, those with the highest IoU first, from 0.5 on, each once.
    The last row holds detections without a truth, the last column truths without a detection. Detections of which half
    or more lies in a crowd region do not count where they have no truth.

    Args:
        categories: the K category ids in the order of rows and columns
        threshold: the lowest score that counts
    """
    place = {category: number for number, category in enumerate(categories)}
    nothing = len(categories)
    table = np.zeros((nothing + 1, nothing + 1), dtype=np.int64)
    found_on: dict[int, list[Mapping]] = {}
    for one in detections:
        if one["score"] >= threshold:
            found_on.setdefault(one["image_id"], []).append(one)
    for image_id in ground_truth.getImgIds():
        truths = ground_truth.imgToAnns.get(image_id, [])
        crowds = [truth for truth in truths if truth.get("iscrowd")]
        truths = [truth for truth in truths if not truth.get("iscrowd")]
        found = sorted(found_on.get(image_id, []), key=lambda one: -one["score"])
        partners = _pair(overlaps(found, truths))
        in_crowd: np.ndarray = np.any(overlaps(found, crowds, crowds=True) >= FOUND, axis=1)
        for row, one in enumerate(found):
            if row in partners:
                table[place[truths[partners[row]]["category_id"]], place[one["category_id"]]] += 1
            elif not in_crowd[row]:
                table[nothing, place[one["category_id"]]] += 1
        for column in set(range(len(truths))) - set(partners.values()):
            table[place[truths[column]["category_id"]], nothing] += 1
    return table


def _pair(shared: np.ndarray) -> dict[int, int]:
    """Of IoUs [D, T] the pairs from `FOUND` on, the highest first, each row and each column at most once."""
    rows, columns = np.nonzero(shared >= FOUND)
    partners: dict[int, int] = {}
    taken: set[int] = set()
    for at in np.argsort(-shared[rows, columns], kind="stable"):
        row, column = int(rows[at]), int(columns[at])
        if row not in partners and column not in taken:
            partners[row] = column
            taken.add(column)
    return partners


def _tallies(judgement: Judgement, threshold: float, groups: np.ndarray, truth_groups: np.ndarray) -> dict[int, Tally]:
    kept = (judgement.scores >= threshold) & (judgement.verdicts != IGNORED)
    right = kept & (judgement.verdicts == RIGHT)
    names = np.union1d(groups[kept], truth_groups)

    def count(members: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(names, members), minlength=len(names))

    hits, detected, truths = count(groups[right]), count(groups[kept]), count(truth_groups)
    rows = zip(names.tolist(), hits.tolist(), detected.tolist(), truths.tolist(), strict=True)
    return {name: Tally(hit, found - hit, truth - hit) for name, hit, found, truth in rows}
