"""Data part ``yolo``: a data set in YOLO's format."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import Field

from detrkit.data.dataset import Split
from detrkit.data.decode import Exif
from detrkit.data.file_dataset import Annotations, Reduced, Unreadable
from detrkit.data.file_source import FileSource, Numbering, Share
from detrkit.data.records import Category
from detrkit.data.yolo import YoloSet, find_yaml, read_yaml, read_yolo
from detrkit.errors import DataError
from detrkit.paths import with_home
from detrkit.recipe import Given, Slot, as_factory, register
from detrkit.wording import counted


@register("data", "yolo")
class YoloSource(FileSource):
    """A data set in YOLO's format.

    Args:
        root: the data.yaml, or the folder that it is in. Its ``path``, ``train``, ``val`` (folders, lists of them, or
            text files that list images) and ``names`` are read; category ids are the classes' numbers there.
        labels, exif, val_share, split_seed, unreadable, repeat_threshold, size_pool, reduced_jpeg, augment: as for
            `coco`.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        labels: Numbering = "contiguous",
        exif: Exif = "upright",
        val_share: Share | None = None,
        split_seed: Annotated[int, Field(ge=0)] = 0,
        unreadable: Unreadable = "stop",
        repeat_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        size_pool: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
        reduced_jpeg: Reduced = "train",
        augment: Annotated[Given, Slot("augment")] = "detr",
    ):
        super().__init__(
            root=with_home(root) if root is not None else None,
            labels=labels,
            exif=exif,
            val_share=val_share,
            split_seed=split_seed,
            unreadable=unreadable,
            repeat_threshold=repeat_threshold,
            size_pool=size_pool,
            reduced_jpeg=reduced_jpeg,
            augment=as_factory("augment", augment)(),
        )

    @cached_property
    def described(self) -> YoloSet:
        """What the set's data.yaml says."""
        if self.root is None:
            raise DataError("where is the data set? Set data.root to its data.yaml, or to the folder of that")
        file = find_yaml(self.root)
        if file is None:
            raise DataError(f"data.root: {self.root} is no data.yaml, and no folder with one that has names")
        return read_yaml(file)

    def describe(self) -> str:
        entries = ", ".join(
            f"{split} in {counted(len(paths), 'place')}" for split, paths in self.described.entries.items()
        )
        return f"YOLO: {self.described.file.name}, {counted(len(self.described.names), 'class')}, {entries}"

    def find(self, split: Split) -> str | None:
        return split if split in self.described.entries else None

    def find_whole(self) -> str | None:
        return None  # a data.yaml always names a split

    def read(self, found: str) -> Annotations:
        return read_yolo(self.described, found, exif=self.exif)

    def read_categories(self, found: str) -> tuple[Category, ...]:
        return tuple(Category(number, name) for number, name in enumerate(self.described.names))

    def no_split(self, split: Split) -> DataError:
        advice = "; to validate on a share of the images set data.val_share=0.2" if split == "val" else ""
        return DataError(f"{self.described.file}: names no {split}{advice}")
