"""Data part ``auto``: a folder in whatever format it turns out to be."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from detrkit.data.coco_source import CocoSource
from detrkit.data.darknet import find_darknet
from detrkit.data.dataset import Split
from detrkit.data.file_dataset import Annotations
from detrkit.data.file_source import FileSource
from detrkit.data.labelme import find_labelme
from detrkit.data.labelme_source import LabelMeSource
from detrkit.data.records import Category
from detrkit.data.voc import find_voc
from detrkit.data.voc_source import VocSource
from detrkit.data.yolo import find_yaml
from detrkit.data.yolo_source import YoloSource
from detrkit.errors import DataError
from detrkit.recipe import register

SHARE = 0.2
"""of the images, to validate on, where a set has no split of its own and none is asked for"""


@register("data", "auto")
class AutoSource(FileSource):
    """A data set in COCO's, YOLO's, Pascal VOC's or LabelMe's format, told by looking at the folder.

    Args:
        root: the folder, or a YOLO set's data.yaml.
        val_share: the share of images to validate on, where the set has no val split; unset: 0.2.
        labels, exif, split_seed, unreadable, repeat_threshold, size_pool, reduced_jpeg, augment: as for `coco`.
    """

    usual_share = SHARE

    @cached_property
    def inner(self) -> FileSource:
        """The set in its own format. Raises ``DataError`` where it is in none that is known."""
        root = self.root
        if root is None:
            raise DataError("where is the data set? Set data.root to its folder, or to a YOLO set's data.yaml")
        if not root.exists():
            raise DataError(f"data.root: there is no {root}")
        common: dict[str, Any] = {"root": str(root), "exif": self.exif, "augment": lambda: self.augment}
        if root.is_dir():
            coco = CocoSource(**common)
            if coco.find("train") or coco.find("val") or coco.find_whole():
                return coco
        if find_yaml(root) is not None:
            return YoloSource(**common)
        if root.is_dir() and find_voc(root) is not None:
            return VocSource(**common)
        if root.is_dir() and find_labelme(root) is not None:
            return LabelMeSource(**common)
        if find_darknet(root) is not None:
            return YoloSource(**common)
        raise DataError(f"data.root: {root} {_seen(root)}")

    def describe(self) -> str:
        return self.inner.describe()

    def find(self, split: Split) -> Any | None:
        return self.inner.find(split)

    def find_whole(self) -> Any | None:
        return self.inner.find_whole()

    def read(self, found: Any) -> Annotations:
        return self.inner.read(found)

    def read_categories(self, found: Any) -> tuple[Category, ...]:
        return self.inner.read_categories(found)

    def no_split(self, split: Split) -> DataError:
        return self.inner.no_split(split)


def _seen(root: Path) -> str:
    """What a folder holds, and what it should hold."""
    wanted = (
        "COCO (annotations/instances_train.json and train/, train/_annotations.coco.json, or one .json of all images), "
        "YOLO (data.yaml with names, obj.data or classes.txt), Pascal VOC (.xml in Annotations/ or beside images), "
        "LabelMe (.json beside images)"
    )
    if root.is_file():
        return f"is a file in none of the known formats; a folder is looked for: {wanted}"
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())[:8]
    return f"is in none of the known formats: {wanted}. It holds {', '.join(entries) or 'nothing'}"
