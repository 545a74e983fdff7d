"""Data part ``yolo``: a data set in YOLO's format."""

from __future__ import annotations

from functools import cached_property

from detrkit.data.darknet import LISTS, find_darknet, read_darknet
from detrkit.data.dataset import Split
from detrkit.data.file_dataset import Annotations
from detrkit.data.file_source import FileSource
from detrkit.data.records import Category
from detrkit.data.yolo import WHOLE, YoloSet, find_yaml, read_yaml, read_yolo
from detrkit.errors import DataError
from detrkit.recipe import register
from detrkit.wording import counted


@register("data", "yolo")
class YoloSource(FileSource):
    """A data set in YOLO's format.

    Args:
        root: the data.yaml, or the folder that it is in. Its ``path``, ``train``, ``val`` (folders, lists of them, or
            text files that list images) and ``names`` are read; category ids are the classes' numbers there. Or a
            folder with Darknet's ``obj.data``, or with a list of classes (labelImg's ``classes.txt``).
        labels, exif, val_share, split_seed, unreadable, repeat_threshold, size_pool, reduced_jpeg, augment: as for
            `coco`.
    """

    @cached_property
    def described(self) -> YoloSet:
        """What the set's data.yaml says, or the files that stand for it."""
        if self.root is None:
            raise DataError("where is the data set? Set data.root to its data.yaml, or to the folder of that")
        if file := find_yaml(self.root):
            return read_yaml(file)
        if file := find_darknet(self.root):
            return read_darknet(file, self.root)
        raise DataError(
            f"data.root: {self.root} is no data.yaml, and no folder with one that has names, with an obj.data, or with "
            f"a list of classes ({', '.join(LISTS)})"
        )

    def describe(self) -> str:
        entries = ", ".join(
            "not split" if split == WHOLE else f"{split} in {counted(len(paths), 'place')}"
            for split, paths in self.described.entries.items()
        )
        return f"YOLO: {self.described.file.name}, {counted(len(self.described.names), 'class')}, {entries}"

    def find(self, split: Split) -> str | None:
        return split if split in self.described.entries else None

    def find_whole(self) -> str | None:
        return WHOLE if WHOLE in self.described.entries else None  # a data.yaml always names a split

    def read(self, found: str) -> Annotations:
        return read_yolo(self.described, found, exif=self.exif)

    def read_categories(self, found: str) -> tuple[Category, ...]:
        return tuple(Category(number, name) for number, name in enumerate(self.described.names))

    def no_split(self, split: Split) -> DataError:
        shared = split == "val" or self.find_whole() is not None
        advice = "; to validate on a share of the images set data.val_share=0.2" if shared else ""
        return DataError(f"{self.described.file}: names no {split}{advice}")
