"""Average precision from detections that are matched and ranked once, for any number of resamples of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Ranking:
    """The detections of one class that count at one IoU, best first, and the truths that they are to find.

    Those after the last that is right change no precision that counts, and are left out.
    """

    images: np.ndarray
    """[D] int32, the place of each detection's image among I"""
    right: np.ndarray
    """[D] bool"""
    truths: np.ndarray
    """[I] int64, how many truths each image holds"""

    @classmethod
    def of(cls, scores: np.ndarray, right: np.ndarray, images: np.ndarray, truths: np.ndarray) -> Ranking:
        """Rank detections [D] by their scores; those of one score stay in their order, as in pycocotools."""
        order = np.argsort(-scores, kind="stable")
        hits = np.flatnonzero(right[order])
        order = order[: hits[-1] + 1] if len(hits) else order[:0]
        return cls(images[order].astype(np.int32), right[order], truths)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """[R] mean of the highest precision at 101 recalls from 0 to 1 on, as COCO's; nan where no truth is left.

        The copies of an image stand together in the ranking. So the highest precision from a right detection on is
        that at its last copy or later, and one number for all of its copies does.

        Args:
            weights: [R, I] int64, how many times each image is in each of R data sets
        """
        truths = weights @ self.truths
        ends = np.flatnonzero(self.right)
        found = np.cumsum(weights[:, self.images], axis=1)[:, ends]
        hits = np.cumsum(weights[:, self.images[ends]], axis=1)
        precision = np.divide(hits, found, out=np.zeros(hits.shape), where=found > 0)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, hits / np.maximum(truths, 1)[:, None], side="right")
        total = (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
        return np.where(truths > 0, total, np.nan)


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """[R] means of [R, ...] over what is no nan; nan where all is."""
    flat = values.reshape(len(values), -1)
    known = ~np.isnan(flat)
    count = known.sum(axis=1)
    total = np.where(known, flat, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(flat), np.nan), where=count > 0)
