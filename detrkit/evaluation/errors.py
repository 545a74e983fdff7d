"""What kinds of mistakes a detector makes, and what each costs in AP50.

The kinds are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
sections 2.2 and 2.3) for boxes, with its IoU limits: 0.5 for what is found, 0.1 for what lies beside everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as box_overlap
from pycocotools.coco import COCO

from detrkit.evaluation.ranking import Ranking

FOUND, BESIDE = 0.5, 0.1
LIMIT = 100  # detections of a class on an image, as COCO counts them

RIGHT, IGNORED = "right", "ignored"  # ignored: inside a crowd region of its class
CLASS, PLACE, BOTH, AGAIN, NOTHING = "classification", "localisation", "both", "duplicate", "background"
MISSED = "missed"
KINDS = (CLASS, PLACE, BOTH, AGAIN, NOTHING, MISSED)


@dataclass(frozen=True)
class Judgement:
    """What each of D detections is, and what became of each of T truths (crowd regions are not among them).

    Detections are those that COCO counts: the best hundred of each class and image.
    """

    image_ids: np.ndarray
    """[D] int64"""
    category_ids: np.ndarray
    """[D] int64"""
    scores: np.ndarray
    """[D] float64"""
    verdicts: np.ndarray
    """[D] str: right, ignored, or one of KINDS without missed"""
    truths: np.ndarray
    """[D] int64, the truth that a detection found, or that it would have found but for its class or its place; or -1"""
    truth_images: np.ndarray
    """[T] int64"""
    truth_categories: np.ndarray
    """[T] int64"""
    found: np.ndarray
    """[T] bool"""

    @property
    def missed(self) -> np.ndarray:
        """[T] bool: not found, and no detection of the wrong class or place would find it either."""
        claimed = np.zeros(len(self.found), dtype=bool)
        claimed[self.truths[np.isin(self.verdicts, (CLASS, PLACE))]] = True
        return ~self.found & ~claimed

    def counts(self) -> dict[str, int]:
        """How many mistakes of each kind there are."""
        return {kind: int((self.verdicts == kind).sum()) for kind in KINDS[:-1]} | {MISSED: int(self.missed.sum())}

    def costs(self) -> dict[str, float]:
        """AP50 in [0, 1] that is gained where all mistakes of one kind, and nothing else, are put right (section 2.3).

        A wrong class or place is put right where its truth was not found otherwise, by the detection with the highest
        score; every other wrong detection is left out; a missed truth is not asked for.
        """
        before = self.average_precision()
        return {kind: max(0.0, self.average_precision(without=kind) - before) for kind in KINDS}

    def average_precision(self, without: str | None = None) -> float:
        """AP50 in [0, 1] over the classes that have truths, as COCO computes it; with one of KINDS put right."""
        image_ids = np.union1d(self.image_ids, self.truth_images)
        once = np.ones((1, len(image_ids)), dtype=np.int64)
        each = [ranking.average_precision(once)[0] for ranking in self.rankings(without, image_ids)]
        return float(np.mean(each)) if each else 0.0

    def rankings(self, without: str | None, image_ids: np.ndarray) -> list[Ranking]:
        """The detections of each class that has truths, with one of KINDS put right, as `costs` says; or as they are.

        Args:
            image_ids: [I], rising, all that were evaluated: the order of the rankings' images
        """
        counted = self.verdicts != IGNORED
        right = self.verdicts == RIGHT
        categories = self.category_ids.copy()
        asked = np.ones(len(self.found), dtype=bool)
        if without == MISSED:
            asked = ~self.missed
        elif without is not None:
            wrong = self.verdicts == without
            mended = wrong & self._mendable()
            categories[mended] = self.truth_categories[self.truths[mended]]
            right |= mended
            counted &= ~wrong | mended
        images = np.searchsorted(image_ids, self.image_ids)
        truth_images = np.searchsorted(image_ids, self.truth_images)
        found = []
        for category in np.unique(self.truth_categories[asked]):
            of_class = counted & (categories == category)
            truths = np.bincount(truth_images[asked & (self.truth_categories == category)], minlength=len(image_ids))
            found.append(Ranking.of(self.scores[of_class], right[of_class], images[of_class], truths))
        return found

    def _mendable(self) -> np.ndarray:
        """[D] bool: of the wrong classes and places of each truth that was not found, the one with the best score."""
        claims = np.flatnonzero(np.isin(self.verdicts, (CLASS, PLACE)))
        claims = claims[~self.found[self.truths[claims]]]
        claims = claims[np.argsort(-self.scores[claims], kind="stable")]
        _, first = np.unique(self.truths[claims], return_index=True)
        mendable = np.zeros(len(self.verdicts), dtype=bool)
        mendable[claims[first]] = True
        return mendable


def judge(ground_truth: COCO, detections: Sequence[Mapping]) -> Judgement:
    """Match detections with truths at IoU 0.5 as COCO does, and name what is wrong with each that found none.

    Args:
        ground_truth: the truths of all images that were evaluated
        detections: COCO results (image_id, category_id, bbox [x, y, width, height], score), in any order
    """
    found_on: dict[int, list[Mapping]] = {}
    for detection in detections:
        found_on.setdefault(detection["image_id"], []).append(detection)
    columns: dict[str, list] = {name: [] for name in ("image", "category", "score", "verdict", "truth")}
    truth_images: list[int] = []
    truth_categories: list[int] = []
    found: list[bool] = []
    for image_id in sorted(ground_truth.getImgIds()):
        truths = ground_truth.imgToAnns.get(image_id, [])
        crowds = [truth for truth in truths if truth.get("iscrowd")]
        truths = [truth for truth in truths if not truth.get("iscrowd")]
        ranked = _counted(found_on.get(image_id, []))
        verdicts, chosen, seen = _judge_image(ranked, truths, crowds)
        columns["image"] += [image_id] * len(ranked)
        columns["category"] += [one["category_id"] for one in ranked]
        columns["score"] += [one["score"] for one in ranked]
        columns["verdict"] += verdicts
        columns["truth"] += [-1 if place < 0 else place + len(found) for place in chosen]
        truth_images += [image_id] * len(truths)
        truth_categories += [truth["category_id"] for truth in truths]
        found += seen
    return Judgement(
        image_ids=np.array(columns["image"], dtype=np.int64),
        category_ids=np.array(columns["category"], dtype=np.int64),
        scores=np.array(columns["score"], dtype=np.float64),
        verdicts=np.array(columns["verdict"], dtype=str),
        truths=np.array(columns["truth"], dtype=np.int64),
        truth_images=np.array(truth_images, dtype=np.int64),
        truth_categories=np.array(truth_categories, dtype=np.int64),
        found=np.array(found, dtype=bool),
    )


def overlaps(first: Sequence[Mapping], second: Sequence[Mapping], *, crowds: bool = False) -> np.ndarray:
    """[len(first), len(second)] IoU of COCO boxes; with crowds, the share of each first that lies in the second."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.asarray(
        box_overlap.iou([one["bbox"] for one in first], [one["bbox"] for one in second], [crowds] * len(second))
    )


def _counted(detections: Sequence[Mapping]) -> list[Mapping]:
    """The best `LIMIT` of each class, best first."""
    left: dict[int, int] = {}
    kept = []
    for one in sorted(detections, key=lambda one: -one["score"]):
        category = one["category_id"]
        left[category] = left.get(category, LIMIT) - 1
        if left[category] >= 0:
            kept.append(one)
    return kept


def _judge_image(
    detections: Sequence[Mapping], truths: Sequence[Mapping], crowds: Sequence[Mapping]
) -> tuple[list[str], list[int], list[bool]]:
    """Of each detection (best first) its verdict and its truth or -1; of each truth whether it was found."""
    shared = overlaps(detections, truths)
    in_crowd = overlaps(detections, crowds, crowds=True)
    found = [False] * len(truths)
    chosen = [-1] * len(detections)
    verdicts = [""] * len(detections)
    of_truths = np.array([truth["category_id"] for truth in truths])
    of_crowds = np.array([crowd["category_id"] for crowd in crowds])
    for row, detection in enumerate(detections):
        free = shared[row] * (of_truths == detection["category_id"]) * ~np.array(found, dtype=bool)
        if len(truths) and free.max() >= FOUND:
            chosen[row] = int(free.argmax())
            found[chosen[row]] = True
            verdicts[row] = RIGHT
        elif len(crowds) and (in_crowd[row] * (of_crowds == detection["category_id"])).max() >= FOUND:
            verdicts[row] = IGNORED
    for row, detection in enumerate(detections):
        if not verdicts[row]:
            verdicts[row], chosen[row] = _mistake(shared[row], of_truths == detection["category_id"])
    return verdicts, chosen, found


def _mistake(shared: np.ndarray, same: np.ndarray) -> tuple[str, int]:
    """What is wrong with a detection that found nothing, by its IoU with the truths [T] and which are of its class."""
    if not len(shared) or shared.max() <= BESIDE:
        return NOTHING, -1
    own, others = shared * same, shared * ~same
    if BESIDE <= own.max() < FOUND:
        return PLACE, int(own.argmax())
    if others.max() >= FOUND:
        return CLASS, int(others.argmax())
    return (AGAIN, -1) if own.max() >= FOUND else (BOTH, -1)
