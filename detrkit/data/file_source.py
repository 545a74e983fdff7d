"""What all data sets in files share: two splits of their own, or one set that a seed divides."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from detrkit.data.dataset import DataSource, Split
from detrkit.data.decode import Exif
from detrkit.data.file_dataset import Annotations, FileDataset, Reduced, Unreadable
from detrkit.data.records import Category, Labels
from detrkit.errors import DataError
from detrkit.paths import with_home
from detrkit.recipe import Given, Slot, as_factory

Share = Annotated[float, Field(gt=0, lt=1)]
Numbering = Literal["contiguous", "category_id"]


class FileSource(DataSource):
    """A data set in files.

    Args:
        root: the folder.
        labels: ``contiguous`` numbers the categories 0..K-1 by id; ``category_id`` keeps their ids.
        exif: see `detrkit.data.decode.decode`.
        val_share: the share of images to validate on, for a set without a ``val`` of its own.
        split_seed: draws them; the same images on every machine.
        unreadable: what an image does that cannot be read in the middle of a training: "stop" it, or "skip": another
            image stands in its place, and it is counted and named.
        repeat_threshold: classes in a smaller share of the images are rare, and images with them are seen more often.
        size_pool: batches whose images are drawn together and divided by their sizes; see `DataSource`.
        reduced_jpeg: in which splits large JPEG files are decoded at a reduced size.
    """

    usual_share: float | None = None
    """the share of a set without a ``val`` that does not say any"""

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
        super().__init__(augment=as_factory("augment", augment)())
        self.unreadable: Unreadable = unreadable
        self.reduced_jpeg: Reduced = reduced_jpeg
        self.repeat_threshold, self.size_pool = repeat_threshold, size_pool
        self.root, self.exif = with_home(root) if root is not None else None, exif
        self.val_share, self.split_seed = self.usual_share if val_share is None else val_share, split_seed
        self.keep_ids = labels == "category_id"

    @abstractmethod
    def find(self, split: Split) -> Any | None:
        """Where a split's annotations are; None if the set has no such split of its own."""

    @abstractmethod
    def find_whole(self) -> Any | None:
        """Where the annotations of a set without splits are; None if there are none."""

    @abstractmethod
    def read(self, found: Any) -> Annotations:
        """Read what was found. Raises ``DataError`` where it cannot be used."""

    @abstractmethod
    def read_categories(self, found: Any) -> tuple[Category, ...]:
        """The categories alone, which may be less to read."""

    @abstractmethod
    def no_split(self, split: Split) -> DataError:
        """That there is no such split: where it was looked for, and what helps."""

    @abstractmethod
    def describe(self) -> str:
        """The format, and what of it was found, in a line."""

    @cached_property
    def labels(self) -> Labels:
        found = self.find("train") or self.find("val") or self.find_whole()
        if found is None:
            raise self.no_split("train")
        return Labels(self.read_categories(found), keep_ids=self.keep_ids)

    def has(self, split: Split) -> bool:
        """Whether the set has the split, of its own or by ``val_share``."""
        return self.find(split) is not None or self._shared() is not None

    def open(self, split: Split) -> FileDataset:
        shared = self._shared()
        if shared is not None:
            share = self.val_share or 0.0
            annotations = self._whole.share(share, self.split_seed, of_val=split == "val")
            if not len(annotations.records):
                raise DataError(f"{self.root}: one image cannot be divided into train and val")
        else:
            found = self.find(split)
            if found is None:
                raise self.no_split(split)
            annotations = self.read(found)
        self._check_categories(annotations)
        return FileDataset(
            split=split,
            labels=self.labels,
            augment=self.augment,
            annotations=annotations,
            exif=self.exif,
            unreadable=self.unreadable,
            reduced=self.reduced_jpeg in ("always", split),
        )

    @cached_property
    def _whole(self) -> Annotations:
        return self.read(self._shared())

    def _shared(self) -> Any | None:
        """What `val_share` divides: a set without splits, or one with `train` alone."""
        if self.val_share is None or self.find("val") is not None:
            return None
        return self.find("train") or self.find_whole()

    def _check_categories(self, annotations: Annotations) -> None:
        known = {category.id: category.name for category in self.categories}
        for category in annotations.categories:
            if known.get(category.id) != category.name:
                other = f"is {known[category.id]!r}" if category.id in known else "does not exist"
                raise DataError(
                    f"{annotations.folder}: category {category.id} is {category.name!r} here, but {other} in the other "
                    "split; both splits need the same categories"
                )
