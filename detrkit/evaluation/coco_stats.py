"""The twelve COCO numbers and a table per class, computed from plain lists by pycocotools or what stands in for it."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrkit.errors import DataError

Evaluator = tuple[type[COCO], Callable[..., COCOeval]]
PYCOCOTOOLS: Evaluator = (COCO, COCOeval)

STAT_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")


@dataclass(frozen=True)
class ClassResult:
    """One row of the table per class.

    Args:
        category_id: the id in the annotation file
        name: the category's name
        AP, AP50, AP75: average precision in 0..1 (mean of IoU 0.50 to 0.95; at 0.50; at 0.75); None for a
            class without truths, which is then also no part of the means
        APS, APM, APL: AP of truths under 32 x 32 pixels, under 96 x 96, and larger; None where there are none
        AR100: average recall in 0..1 with up to 100 detections an image; None likewise
        truths: number of truths that are not crowd regions
        detections: number of detections of this class
    """

    category_id: int
    name: str
    AP: float | None
    AP50: float | None
    AP75: float | None
    APS: float | None
    APM: float | None
    APL: float | None
    AR100: float | None
    truths: int
    detections: int


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Args:
        stats: the twelve numbers by the names of ``STAT_NAMES``, each in 0..1; None where no truth is of
            that kind (no small objects: no APS), where pycocotools says -1
        per_class: one row per category of the data set, in the order of the category ids
        detections: COCO results, dicts of image_id, category_id, bbox [x, y, width, height] in pixels, score, and
            the point [x, y] in pixels of detectors that have one
        images: number of images evaluated
    """

    stats: dict[str, float | None]
    per_class: list[ClassResult]
    detections: list[dict]
    images: int

    def summary(self) -> dict:
        """The result without its detections, ready for JSON."""
        return {
            "images": self.images,
            "stats": self.stats,
            "per_class": [asdict(row) for row in self.per_class],
        }


def fastest_evaluator(*, in_parts: bool = False) -> Evaluator:
    """That of faster_coco_eval (extra "faster-eval") if it is installed, else pycocotools; their numbers are the same.

    A precision may differ in the last bit of its 64, since pycocotools adds a hair to what it divides by.

    Args:
        in_parts: matches are kept apart from their counting, which takes 1.4 times as long in all
    """
    try:
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        return PYCOCOTOOLS
    return FasterCOCO, partial(COCOeval_faster, separate_eval=True) if in_parts else COCOeval_faster


def coco_stats(
    ground_truth: COCO,
    detections: Sequence[dict],
    *,
    image_ids: Sequence[int] | None = None,
    evaluator: Evaluator | None = None,
) -> EvalResult:
    """Evaluate boxes as COCO does: IoU 0.50 to 0.95, up to 100 detections an image, crowd regions ignored.

    Nothing is printed, and neither argument is changed.

    Args:
        ground_truth: the truths; ``area`` decides small, medium and large; the box's area where it is missing
        detections: COCO results (image_id, category_id, bbox [x, y, width, height], score), in any order
        image_ids: evaluate these images only; all images of the ground truth if None
        evaluator: pycocotools' classes, or those of a package with the same ones; `fastest_evaluator()` if None

    Raises:
        DataError: a detection names an image or a category that the ground truth does not have
    """
    evaluator = evaluator or fastest_evaluator()
    evaluation = evaluate_boxes(ground_truth, detections, image_ids=image_ids, evaluator=evaluator)
    return accumulate(evaluation, detections)


def accumulate(evaluation: COCOeval, detections: Sequence[dict]) -> EvalResult:
    """The numbers of detections that are matched; nothing is printed."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return EvalResult(
        stats={name: _share(value) for name, value in zip(STAT_NAMES, evaluation.stats, strict=True)},
        per_class=_per_class(evaluation),
        detections=list(detections),
        images=len(evaluation.params.imgIds),
    )


def evaluate_boxes(
    ground_truth: COCO,
    detections: Sequence[dict],
    *,
    image_ids: Sequence[int] | None = None,
    evaluator: Evaluator = PYCOCOTOOLS,
) -> COCOeval:
    """Detections matched with truths, image by image, and not accumulated yet. As `coco_stats` otherwise."""
    known = set(ground_truth.getImgIds())
    images = sorted(known if image_ids is None else set(image_ids))
    categories = sorted(ground_truth.dataset.get("categories", []), key=lambda category: category["id"])
    if unknown := sorted(set(images) - known):
        raise DataError(f"image {unknown[0]} is to be evaluated, but the ground truth has no such image")
    _check_known("image", known, (detection["image_id"] for detection in detections))
    _check_known("category", {c["id"] for c in categories}, (d["category_id"] for d in detections))

    # Both sides are rebuilt with ids counted from 1: pycocotools takes a truth with the id 0 for "no match",
    # writes into the annotations it is given, and cannot load an empty list of results.
    truths = [_bare_truth(a) for image in images for a in ground_truth.imgToAnns.get(image, [])]
    wanted = set(images)
    found = [{**d, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for d in detections if d["image_id"] in wanted]
    # pycocotools reports to stdout; a trainer's log should not contain it at every evaluation.
    index, evaluate = evaluator
    with contextlib.redirect_stdout(io.StringIO()):
        sides = (_indexed(index, images, categories, annotations) for annotations in (truths, found))
        evaluation = evaluate(*sides, "bbox")
        evaluation.evaluate()
    return evaluation


def _check_known(kind: str, known: set[int], used) -> None:
    for identity in used:
        if identity not in known:
            raise DataError(
                f"a detection names {kind} {identity}, which the ground truth's {len(known)} do not include: "
                "the detections belong to another data set"
            )


def _bare_truth(annotation: dict) -> dict:
    _, _, width, height = annotation["bbox"]
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": annotation["bbox"],
        "area": annotation.get("area", width * height),
        "iscrowd": annotation.get("iscrowd", 0),
    }


def _indexed(index: type[COCO], image_ids: Sequence[int], categories: list[dict], annotations: list[dict]) -> COCO:
    coco = index()
    coco.dataset = {
        "images": [{"id": identity} for identity in image_ids],
        "categories": categories,
        "annotations": [{**a, "id": number} for number, a in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _per_class(evaluation: COCOeval) -> list[ClassResult]:
    # precision: [IoU thresholds, recall points, classes, area ranges, detection limits]; recall lacks the
    # recall points. Area ranges are all, small, medium and large; the last limit is 100.
    by_area = evaluation.eval["precision"][:, :, :, :, -1]
    precision = by_area[:, :, :, 0]
    recall = evaluation.eval["recall"][:, :, 0, -1]
    categories = evaluation.cocoGt.dataset["categories"]
    truths_of = Counter(t["category_id"] for t in evaluation.cocoGt.dataset["annotations"] if not t["iscrowd"])
    found_of = Counter(d["category_id"] for d in evaluation.cocoDt.dataset["annotations"])
    thresholds = np.round(evaluation.params.iouThrs, 2)
    at_50, at_75 = (int(np.flatnonzero(thresholds == value)[0]) for value in (0.5, 0.75))
    return [
        ClassResult(
            category_id=category["id"],
            name=category.get("name", str(category["id"])),
            AP=_share(precision[:, :, k].mean()),
            AP50=_share(precision[at_50, :, k].mean()),
            AP75=_share(precision[at_75, :, k].mean()),
            **{f"AP{size}": _share(by_area[:, :, k, area].mean()) for area, size in enumerate("SML", start=1)},
            AR100=_share(recall[:, k].mean()),
            truths=truths_of[category["id"]],
            detections=found_of[category["id"]],
        )
        for k, category in enumerate(categories)
    ]


def _share(value: float) -> float | None:
    """pycocotools says -1 where there is nothing to measure."""
    return None if value < 0 else float(value)
