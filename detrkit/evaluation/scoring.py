"""COCO's numbers computed beside the detector: a process matches a batch while the next one is detected."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from detrkit.data.loader import leave_group
from detrkit.evaluation.coco_stats import EvalResult, Evaluator, accumulate, evaluate_boxes, fastest_evaluator


class Scoring:
    """Takes detections as they come, and has the numbers soon after the last: those of `coco_stats`, to the last bit.

    A context manager, whose process ends with it.
    """

    def __init__(self, ground_truth: COCO):
        self._connection, theirs = multiprocessing.Pipe()
        arguments = (theirs, self._connection, ground_truth)
        self._process = multiprocessing.Process(target=_score, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.kill()  # a signal that asks would meet the trainer's own handler
        self._process.join()

    def add(self, image_ids: Sequence[int], detections: Sequence[dict]) -> None:
        """All detections of these images, which come once. Waits where the process is more than a batch behind."""
        self._send((image_ids, detections))

    def result(self) -> EvalResult:
        """The numbers of all images of the ground truth, without the detections.

        Raises:
            DataError: a detection names an image or a category that the ground truth does not have
            RuntimeError: the process was ended from outside
        """
        self._send(None)
        try:
            outcome = self._connection.recv()
        except (EOFError, ConnectionError):
            outcome = RuntimeError("the process that scores the detections was ended; was memory short?")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _send(self, part: tuple[Sequence[int], Sequence[dict]] | None) -> None:
        with suppress(ConnectionError):  # where the process has ended, `result` tells why
            self._connection.send(part)


def _score(connection: Connection, theirs: Connection, ground_truth: COCO) -> None:
    """The process: parts until None, then the numbers, or what went wrong."""
    leave_group()
    theirs.close()  # so that the pipe ends where the trainer does
    parts = Parts(ground_truth, fastest_evaluator(in_parts=True))
    try:
        for image_ids, detections in iter(connection.recv, None):
            parts.add(image_ids, detections)
        outcome: EvalResult | Exception = parts.result()
    except EOFError:
        return
    except Exception as error:
        outcome = error
    connection.send(outcome)


class Parts:
    """Detections matched with truths a few images at a time, then counted all together.

    Args:
        evaluator: one whose matches are kept apart, `fastest_evaluator(in_parts=True)`
    """

    def __init__(self, ground_truth: COCO, evaluator: Evaluator):
        self._truth, self._evaluator = ground_truth, evaluator
        self._parts: list[COCOeval] = []
        self._left = set(ground_truth.getImgIds())

    def add(self, image_ids: Sequence[int], detections: Sequence[dict]) -> None:
        self._parts.append(evaluate_boxes(self._truth, detections, image_ids=image_ids, evaluator=self._evaluator))
        self._left -= set(image_ids)

    def result(self) -> EvalResult:
        if self._left or not self._parts:
            self.add(sorted(self._left), [])
        return accumulate(_joined(self._parts), [])


def _joined(parts: Sequence[COCOeval]) -> COCOeval:
    """Parts of the images as if they had been matched at once; the first is changed."""
    whole = parts[0]
    # Cells stand by class, range of areas and image, and those of faster_coco_eval under a name of their own.
    name = "_evalImgs_cpp" if hasattr(whole, "_evalImgs_cpp") else "evalImgs"
    cells = np.concatenate([_cells(part.params, getattr(part, name)) for part in parts], axis=2)
    image_ids = np.concatenate([part.params.imgIds for part in parts])
    order = np.argsort(image_ids)
    setattr(whole, name, cells[:, :, order].ravel().tolist())
    whole.params.imgIds = whole._paramsEval.imgIds = image_ids[order].tolist()
    for side in ("cocoGt", "cocoDt"):
        annotations = [a for part in parts for a in getattr(part, side).dataset["annotations"]]
        getattr(whole, side).dataset["annotations"] = annotations
    return whole


def _cells(params: Params, values: list[Any]) -> np.ndarray:
    """[classes, ranges, images] of objects, which numpy would otherwise look into."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(len(params.catIds), len(params.areaRng), len(params.imgIds))
