"""What is in a split, and what is wrong with it: annotations and, where there are any, image files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detrkit.data.dataset import Dataset
from detrkit.data.decode import WrongSizeError, decode, open_orientation
from detrkit.data.file_dataset import FileDataset
from detrkit.data.records import MEDIUM, SMALL, Fault, Records
from detrkit.errors import DataError

FILE_FAULTS = ("missing file", "other size", "unreadable image")
"""kinds of faults for which an image is of no use"""


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs: ``boxes`` and ``images`` without crowd regions, ``crowds`` apart."""

    id: int
    name: str
    boxes: int
    images: int
    crowds: int


@dataclass(frozen=True)
class SplitReport:
    """What a split holds. Boxes are counted without crowd regions; areas are those of the annotations."""

    images: int
    boxes: int
    crowds: int
    classes: list[ClassCount]
    sizes: dict[str, int]  # small, medium, large
    boxes_per_image: dict[str, float]  # least, mean, most
    image_sizes: dict[str, int]  # "width x height" -> images, the most common first
    images_without_boxes: list[int | str]  # image ids
    faults: list[Fault]

    @property
    def loses_data(self) -> bool:
        """Whether an image or an annotation is left out, or cannot be read."""
        return any(fault.loses for fault in self.faults)

    @property
    def unusable(self) -> set[int | str | None]:
        """The ids of images whose files cannot be used."""
        return {fault.image_id for fault in self.faults if fault.kind in FILE_FAULTS}

    @property
    def unread(self) -> int:
        """How many images are not in the split at all, as their size or their annotation file cannot be read."""
        return sum(fault.loses and fault.kind in ("no image size", "bad annotation file") for fault in self.faults)

    def as_json(self) -> dict[str, Any]:
        """The report in plain types."""
        return asdict(self) | {"loses_data": self.loses_data}


def check_split(dataset: Dataset, *, files: bool = True, advance: Callable[[], None] = lambda: None) -> SplitReport:
    """Count and check a split.

    Args:
        files: read every image file too, on all cores
        advance: called after each image
    """
    records = dataset.records
    faults = list(dataset.faults)
    if files and isinstance(dataset, FileDataset):
        for fault in _check_files(dataset):
            faults += [fault] if fault else []
            advance()
    image_index = np.repeat(np.arange(len(records)), np.diff(records.first))
    faults += _told_twice(records, image_index)
    ordinary = ~records.crowd
    per_image = records.objects()
    annotated = np.bincount(image_index, minlength=len(records))
    areas = records.areas[ordinary]
    classes = []
    for category in dataset.real_categories:
        mine = records.category_ids == category.id
        boxes = mine & ordinary
        images = len(np.unique(image_index[boxes]))
        crowds = int((mine & records.crowd).sum())
        classes.append(ClassCount(category.id, category.name, int(boxes.sum()), images, crowds))
    sizes = Counter(f"{width} x {height}" for height, width in records.sizes.tolist())
    return SplitReport(
        images=len(records),
        boxes=int(ordinary.sum()),
        crowds=int(records.crowd.sum()),
        classes=classes,
        sizes={
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        boxes_per_image={
            "least": int(per_image.min()),
            "mean": round(float(per_image.mean()), 2),
            "most": int(per_image.max()),
        },
        image_sizes=dict(sizes.most_common()),
        images_without_boxes=[records.given_id(image_id) for image_id in records.image_ids[annotated == 0].tolist()],
        faults=faults,
    )


def _told_twice(records: Records, image_index: np.ndarray) -> Iterator[Fault]:
    """Objects of one class and one box in an image, which are learned twice."""
    objects = np.flatnonzero(~records.crowd)
    values = np.column_stack([image_index, records.category_ids, records.boxes])[objects]
    _, first, counts = np.unique(values, axis=0, return_index=True, return_counts=True)
    for row, count in sorted(zip(objects[first][counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)):
        index = int(image_index[row])
        box = ", ".join(f"{number:g}" for number in records.boxes[row].tolist())
        detail = f"{records.file_names[index]}: {count} objects of class {records.category_ids[row]} have the box {box}"
        given = records.given_id(int(records.image_ids[index]))
        yield Fault(
            "same object twice", given, None, f"{detail} (x, y, width, height): used as they stand", loses=False
        )


def _check_files(dataset: FileDataset) -> Iterator[Fault | None]:
    """One entry for each image: what is wrong with its file, if anything."""
    # Threads, as Pillow decodes outside Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda index: _check_file(dataset, index), range(len(dataset)))


def _check_file(dataset: FileDataset, index: int) -> Fault | None:
    path, image_id = dataset.image_path(index), dataset.records.given_id(dataset.image_id(index))
    height, width = dataset.records.sizes[index].tolist()
    if not path.is_file():
        return Fault("missing file", image_id, None, f"{path} does not exist", loses=True)
    try:
        decode(path, size=(height, width), exif=dataset.exif)
    except WrongSizeError as error:
        return Fault("other size", image_id, None, str(error), loses=True)
    except DataError as error:
        return Fault("unreadable image", image_id, None, str(error), loses=True)
    orientation = open_orientation(path) if dataset.exif == "upright" else None
    if orientation is None:
        return None
    detail = (
        f"{path.name} has EXIF orientation {orientation} and is turned upright; if its boxes are for the pixels "
        'as stored, set data.exif = "stored" (its size fits both)'
    )
    return Fault("unclear orientation", image_id, None, detail, loses=False)
