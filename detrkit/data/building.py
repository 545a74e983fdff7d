"""Records out of images and boxes, for formats that have neither ids nor areas of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from detrkit.data.records import Fault, Records, check_boxes


@dataclass(frozen=True)
class Truth:
    """One object. box: (x, y, w, h) in pixels; ignored: it counts neither as found nor as missed."""

    category_id: int
    box: tuple[float, float, float, float]
    ignored: bool = False


@dataclass
class RecordsBuilder:
    """Collects images in order and numbers them and their objects from 1."""

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def next_id(self) -> int:
        """The id of the image that is added next."""
        return len(self.names) + 1

    def add(self, name: str, size: tuple[int, int], truths: Sequence[Truth]) -> None:
        """An image by its file's name, its (height, width), and its objects."""
        self.names.append(name)
        self.sizes.append(size)
        self.counts.append(len(truths))
        self.truths += truths

    def build(self) -> tuple[Records, list[Fault]]:
        """The records, without boxes that have no area inside their image, and all faults.

        Those of boxes name the image's file: nobody but us knows its number.
        """
        image_ids = np.arange(1, len(self.names) + 1)
        image_of = np.repeat(np.arange(len(self.names)), self.counts)
        sizes = np.array(self.sizes, dtype=np.int64).reshape(-1, 2)
        boxes = np.array([truth.box for truth in self.truths], dtype=np.float64).reshape(-1, 4)
        ids = np.arange(1, len(boxes) + 1)
        keep, faults = check_boxes(boxes, sizes[image_of], ids, image_ids[image_of].tolist())
        records = Records(
            image_ids=image_ids,
            sizes=sizes,
            file_names=np.array(self.names, dtype=np.str_),
            first=np.searchsorted(image_of[keep], np.arange(len(self.names) + 1)),
            annotation_ids=ids[keep],
            category_ids=np.array([truth.category_id for truth in self.truths], dtype=np.int64)[keep],
            boxes=boxes[keep],
            areas=(boxes[:, 2] * boxes[:, 3])[keep],
            crowd=np.array([truth.ignored for truth in self.truths], dtype=bool)[keep],
        )
        name_of: dict[int | str | None, str] = dict(zip(image_ids.tolist(), self.names, strict=True))
        named = [
            fault if fault.image_id is None else replace(fault, detail=f"{name_of[fault.image_id]}: {fault.detail}")
            for fault in faults
        ]
        return records, [*self.faults, *named]
