"""What a data set says about its images: flat arrays, never one Python object for each box.

A list of objects grows every loader worker's memory as its reference counts are touched; arrays do not.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from detrkit.errors import DataError

# Boxes are commonly written to two decimals, and the sum of two such numbers is not exact.
EDGE_TOLERANCE = 0.001
FEWEST_TO_TELL = 10  # boxes, before their form is judged by where they lie
LONGEST_SIDE = 2**31 - 1  # pixels; no image format in use can say more
MOST_LABELS = 100_000  # with category ids as labels: a detector has an output for each
SMALL, MEDIUM = 32.0**2, 96.0**2  # square pixels up to which COCO calls an object small, medium


@dataclass(frozen=True)
class Category:
    """One class of a data set. ``id`` is the number that the data set's files use for it."""

    id: int
    name: str

    @classmethod
    def placeholder(cls, id: int) -> Category:
        """The category of an id that the data set does not use; files know it by its name."""
        return cls(id, f"unused {id}")

    @property
    def is_placeholder(self) -> bool:
        return self == Category.placeholder(self.id)


class Labels:
    """The one place where category ids become labels and labels become category ids.

    ``contiguous`` numbers the categories 0..K-1 in the order given. ``category_id`` keeps the ids as
    labels, so that K is the largest id plus one and unused ids become placeholder categories; official
    checkpoints with 91 outputs need that. Raises ``DataError`` where there are no categories, or where kept ids are
    below 0 or too large.
    """

    def __init__(self, categories: Sequence[Category], *, keep_ids: bool = False):
        if not categories:
            raise DataError("the data set names no categories")
        if keep_ids:
            if min(category.id for category in categories) < 0:
                raise DataError("labels = 'category_id' needs category ids of at least 0")
            used = {category.id: category for category in categories}
            if max(used) >= MOST_LABELS:
                raise DataError(
                    f"labels = 'category_id' makes a label of each number up to the largest category id, {max(used)}; "
                    f"accepted are ids below {MOST_LABELS}, or labels = 'contiguous'"
                )
            categories = [used.get(i, Category.placeholder(i)) for i in range(max(used) + 1)]
        self.categories = tuple(categories)
        ids = np.array([category.id for category in self.categories], dtype=np.int64)
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def of(self, category_ids: np.ndarray) -> np.ndarray:
        """Labels [A] int64 of category ids [A]; a ``DataError`` names the first id that has none."""
        place = np.searchsorted(self._sorted, category_ids).clip(max=len(self._sorted) - 1)
        unknown = self._sorted[place] != category_ids
        if unknown.any():
            raise DataError(f"category id {category_ids[unknown][0]} is not among the data set's categories")
        return self._order[place]


@dataclass(frozen=True)
class Fault:
    """Something wrong with a data set, by image id and annotation id (None where there is none).

    ``loses`` tells whether an image or an annotation is left out for it (a clipped box is not).
    """

    kind: str
    image_id: int | str | None
    annotation_id: int | str | None
    detail: str
    loses: bool

    def __str__(self) -> str:
        where = [f"image {self.image_id}"] if self.image_id is not None else []
        where += [f"annotation {self.annotation_id}"] if self.annotation_id is not None else []
        return ", ".join(where) + (": " if where else "") + self.detail


@dataclass(frozen=True)
class Records:
    """All images of a split and their annotations, I images and A annotations.

    Images are sorted by id. Annotations of image ``i`` are rows ``first[i]`` to ``first[i + 1]``. Boxes are
    as the files have them, (x, y, w, h) in pixels, not clipped, each with some area inside its image; crowd
    regions are among them. ``areas`` are square pixels (of the mask where the files have one).
    """

    image_ids: np.ndarray  # [I] int64
    sizes: np.ndarray  # [I, 2] int64, (height, width)
    file_names: np.ndarray  # [I] str
    first: np.ndarray  # [I + 1] int64
    annotation_ids: np.ndarray  # [A] int64
    category_ids: np.ndarray  # [A] int64
    boxes: np.ndarray  # [A, 4] float64, (x, y, w, h)
    areas: np.ndarray  # [A] float64
    crowd: np.ndarray  # [A] bool
    texts: np.ndarray | None = None  # [I] str, the images' ids where the files have texts; image_ids then count them

    def given_id(self, image_id: int) -> int | str:
        """An image's id as the files have it."""
        if self.texts is None:
            return image_id
        return str(self.texts[np.searchsorted(self.image_ids, image_id)])

    def __len__(self) -> int:
        return len(self.image_ids)

    def of_image(self, index: int) -> slice:
        """The rows of the annotations of the image at ``index``."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def only(self, images: Sequence[int]) -> Records:
        """The records of some of the images, by their indices in ascending order."""
        rows = [np.arange(int(self.first[i]), int(self.first[i + 1])) for i in images]
        counts = [len(each) for each in rows]
        row = np.concatenate([np.empty(0, dtype=np.int64), *rows])
        image = np.array(list(images), dtype=np.int64)
        return Records(
            image_ids=self.image_ids[image],
            sizes=self.sizes[image],
            file_names=self.file_names[image],
            first=np.cumsum([0, *counts]),
            annotation_ids=self.annotation_ids[row],
            category_ids=self.category_ids[row],
            boxes=self.boxes[row],
            areas=self.areas[row],
            crowd=self.crowd[row],
            texts=None if self.texts is None else self.texts[image],
        )

    def objects(self) -> np.ndarray:
        """[I] int64, how many objects each image holds, crowd regions not counted."""
        image_of = np.repeat(np.arange(len(self)), np.diff(self.first))
        return np.bincount(image_of[~self.crowd], minlength=len(self))

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """[I] float64, at least 1, how much more often images with rare classes are to be seen.

        A class in a share f of the images has max(1, sqrt(threshold / f)), an image that of its rarest class
        (Gupta et al., "LVIS", 2019, appendix).
        """
        image_of = np.repeat(np.arange(len(self)), np.diff(self.first))[~self.crowd]
        classes, label = np.unique(self.category_ids[~self.crowd], return_inverse=True)
        seen = np.unique(np.stack((image_of, label)), axis=1)  # each class of each image once
        share = np.bincount(seen[1], minlength=len(classes)) / max(len(self), 1)
        factor = np.maximum(1.0, np.sqrt(threshold / share))
        factors = np.ones(len(self))
        np.maximum.at(factors, seen[0], factor[seen[1]])
        return factors

    def training_boxes(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [T, 4] float32 (x1, y1, x2, y2) clipped to the image, and category ids [T]; no crowds."""
        rows = self.of_image(index)
        ordinary = ~self.crowd[rows]
        boxes = clip_boxes(self.boxes[rows][ordinary], self.sizes[index])
        return boxes.astype(np.float32), self.category_ids[rows][ordinary]

    def ground_truth(self, categories: Sequence[Category]) -> COCO:
        """A pycocotools ground truth with the original image and category ids, crowd regions included.

        Annotations are numbered from 1 anew: pycocotools takes a truth with id 0 for "no match".
        """
        image_of = np.repeat(self.image_ids, np.diff(self.first))
        rows = zip(
            image_of.tolist(),
            self.category_ids.tolist(),
            self.boxes.tolist(),
            self.areas.tolist(),
            self.crowd.tolist(),
            strict=True,
        )
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [
                {"id": image_id, "file_name": name, "height": height, "width": width}
                for image_id, name, (height, width) in zip(
                    self.image_ids.tolist(), self.file_names.tolist(), self.sizes.tolist(), strict=True
                )
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (image_id, category_id, box, area, crowd) in enumerate(rows, start=1)
            ],
            "categories": [{"id": category.id, "name": category.name} for category in categories],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
        return truth


def finite_number(value: Any) -> float | None:
    """A finite number, as JSON has it, or None. JSON knows neither a largest number nor that NaN is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number that no float can hold
        return None


def usable_size(height: float | None, width: float | None) -> tuple[int, int] | None:
    """(height, width) of an image as a file says it; None where it says none that an image can have."""
    if height is None or width is None or not 1 <= min(height, width) <= max(height, width) <= LONGEST_SIDE:
        return None
    return int(height), int(width)


def clip_boxes(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Boxes [A, 4] (x, y, w, h) as (x1, y1, x2, y2) cut at the image's edges; ``size`` [..., 2] (height, width)."""
    limit = np.broadcast_to(np.asarray(size)[..., ::-1], (len(boxes), 2))
    low = np.clip(boxes[:, :2], 0, limit)
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, limit)
    return np.concatenate([low, high], axis=1)


def check_boxes(
    boxes: np.ndarray, sizes: np.ndarray, ids: np.ndarray, image_ids: list[int]
) -> tuple[np.ndarray, list[Fault]]:
    """Which boxes [A] have area inside their image (bool), and a fault for each that is not as it should be.

    One more where all of them lie within a pixel, or most outside their images.
    """
    inside = clip_boxes(boxes, sizes)
    flat = (boxes[:, 2:] <= 0).any(1)
    outside = ~flat & (inside[:, 2:] <= inside[:, :2]).any(1)
    over = (boxes[:, :2] < -EDGE_TOLERANCE) | (boxes[:, :2] + boxes[:, 2:] > sizes[:, ::-1] + EDGE_TOLERANCE)
    cut = ~flat & ~outside & over.any(1)
    faults = []
    if len(boxes) >= FEWEST_TO_TELL and np.abs(boxes).max() <= 1:
        detail = f"none of the {len(boxes)} boxes reaches beyond a pixel: they look like shares of the image"
        faults.append(Fault("box form", None, None, detail, loses=False))
    if len(boxes) >= FEWEST_TO_TELL and outside.sum() > 0.5 * len(boxes):
        detail = f"{outside.sum()} of the {len(boxes)} boxes lie outside their images, as those in another unit than "
        detail += "their format's do: YOLO's are shares of the image, others' pixels"
        faults.append(Fault("box form", None, None, detail, loses=False))
    for kind, which, text in (
        ("zero area", flat, "has no area: left out"),
        ("outside", outside, "lies outside its image: left out"),
        ("out of range", cut, "passes the edge of its image: clipped"),
    ):
        for row in np.flatnonzero(which):
            height, width = sizes[row]
            box = [float(f"{number:.10g}") for number in boxes[row]]  # without the rounding of a format's arithmetic
            detail = f"box {box} {text} (image {width} x {height})"
            faults.append(Fault(kind, image_ids[row], int(ids[row]), detail, loses=kind != "out of range"))
    return np.logical_not(flat | outside), faults
