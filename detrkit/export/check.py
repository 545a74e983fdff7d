"""An exported file beside PyTorch, on real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from detrkit.data.batch import Example, collate
from detrkit.data.decode import decode
from detrkit.evaluation.evaluate import detect
from detrkit.export.loading import ExportedDetector


@dataclass(frozen=True)
class Difference:
    """The largest differences between two sets of detections, paired within each label."""

    scores: float
    """between the scores of a pair"""
    boxes: float
    """between the sides of a pair's boxes, as a share of the image's width or height"""
    unpaired: int
    """detections that have no counterpart within the tolerance, those at the edge of what is kept not counted"""

    def within(self, tolerance: float) -> bool:
        """Whether all agree."""
        return self.unpaired == 0 and max(self.scores, self.boxes) <= tolerance

    def __or__(self, other: Difference) -> Difference:
        """Of both."""
        return Difference(max(self.scores, other.scores), max(self.boxes, other.boxes), self.unpaired + other.unpaired)


NONE = Difference(0.0, 0.0, 0)


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], size: tuple[int, int], tolerance: float) -> Difference:
    """How far two results for one image of `size` (height, width) differ, whatever the order of their detections.

    Within each label, detections are paired so that the sum of what the pairs differ by is least. A detection whose
    score is within the tolerance of the lowest one that is kept need not have a counterpart: at that edge rounding
    decides which is kept.
    """
    scale = torch.tensor([size[1], size[0], size[1], size[0]])
    total = NONE
    edge = max(float(one["scores"].min()) if len(one["scores"]) else 0.0 for one in (ours, theirs)) + tolerance
    for label in torch.cat((ours["labels"], theirs["labels"])).unique().tolist():
        sides = []
        for one in (ours, theirs):
            own = one["labels"] == label
            sides.append((one["scores"][own].double(), one["boxes"][own].double() / scale))
        (scores, boxes), (other_scores, other_boxes) = sides
        by_score = (scores[:, None] - other_scores).abs()
        by_box = (boxes[:, None] - other_boxes).abs().amax(-1)
        close = torch.maximum(by_score, by_box) <= tolerance  # not where there is a NaN
        rows, columns = linear_sum_assignment(np.nan_to_num(by_score + by_box, nan=1e6, posinf=1e6))
        unpaired = 0
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
            if close[i, j]:
                total |= Difference(float(by_score[i, j]), float(by_box[i, j]), 0)
            elif max(scores[i], other_scores[j]) > edge:
                total |= Difference(float(by_score[i, j]), float(by_box[i, j]), 1)
        for side, paired in ((scores, rows), (other_scores, columns)):
            alone = side[np.setdiff1d(np.arange(len(side)), paired)]
            unpaired += int((alone > edge).sum())
        total |= Difference(0.0, 0.0, unpaired)
    return total


def check(
    detector: nn.Module,
    exported: ExportedDetector,
    images: Sequence[Path],
    *,
    transform: Callable[[Image.Image], Image.Image],
    tolerance: float,
    batch_size: int = 2,
) -> Difference:
    """The largest differences over images, `batch_size` at once, of images of any sizes where the file takes a mask.

    Args:
        detector: what was exported, on the CPU.
        transform: RGB image to RGB image as the detector is to see it.

    Raises:
        DataError: an image cannot be read.
    """
    total = NONE
    step = batch_size if exported.card.form.mask else 1
    for start in range(0, len(images), step):
        examples = []
        for index, path in enumerate(images[start : start + step]):
            image = decode(path)
            examples.append(Example.without_truth(transform(image), index, (image.height, image.width)))
        batch = collate(examples)
        ours = detect(detector, batch.images, batch.mask, batch.sizes)
        theirs = exported.detect(batch.images, batch.mask, batch.sizes)
        for one, other, example in zip(ours, theirs, examples, strict=True):
            total |= compare(one, other, example.size, tolerance)
    return total
