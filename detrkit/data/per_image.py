"""Annotations in a file for each image: which files are a split, and what a format's reader gives of one."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from detrkit.data.building import RecordsBuilder, Truth
from detrkit.data.decode import stored_size
from detrkit.data.file_dataset import Annotations
from detrkit.data.file_source import FileSource
from detrkit.data.records import Category, Fault
from detrkit.errors import DataError

SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid", "test")}
"""what lists and folders of a split are called"""
ENDINGS = ("jpg", "jpeg", "png", "JPG", "JPEG", "PNG", "bmp", "tif", "webp")


@dataclass(frozen=True)
class AnnotationFile:
    """One file as read.

    image: what it says of the image's file, if anything; size: (height, width), if it says one that an image can have;
    objects: name, (x0, y0, x1, y1) in pixels and whether it is difficult; faults: what was left out, in words, and
    whether that counts as lost.
    """

    image: str | None
    size: tuple[int, int] | None
    objects: Sequence[tuple[str, tuple[float, float, float, float], bool]]
    faults: Sequence[tuple[str, bool]]


class PerImageSource(FileSource):
    """A data set whose annotations are a file for each image. Category ids count the objects' names, sorted, from 1.

    Images go by their names: the path of the annotation below `annotations`, without the ending.
    """

    ending: ClassVar[str]
    """of the annotations, such as "xml" """

    @property
    @abstractmethod
    def annotations(self) -> Path:
        """The folder of the annotations, which may be in folders of a split in it."""

    @property
    @abstractmethod
    def images(self) -> Path:
        """The folder of the images."""

    @abstractmethod
    def read_file(self, path: Path) -> AnnotationFile:
        """Read one file. Raises ``DataError`` where it is none of the format."""

    @abstractmethod
    def image_name(self, name: str, file: AnnotationFile) -> str:
        """The path of an image's file below `images`."""

    @cached_property
    def _files(self) -> dict[str, AnnotationFile | DataError]:
        """Each file, read once, or why it cannot be, which is told where its split is read."""
        found: dict[str, AnnotationFile | DataError] = {}
        for name in all_names(self.annotations, self.ending):
            try:
                found[name] = self.read_file(self.annotations / f"{name}.{self.ending}")
            except DataError as error:
                found[name] = error
        return found

    @cached_property
    def _categories(self) -> tuple[Category, ...]:
        files = [file for file in self._files.values() if isinstance(file, AnnotationFile)]
        names = sorted({name for file in files for name, _, _ in file.objects})
        return tuple(Category(number, name) for number, name in enumerate(names, start=1))

    def find_whole(self) -> Sequence[str] | None:
        return list(self._files)

    def read(self, found: Sequence[str]) -> Annotations:
        """The images of these names.

        Boxes are (x0, y0, x1 - x0, y1 - y0), as they stand in the files. Difficult objects are regions that count
        neither as found nor as missed, and are not learned.
        """
        if not found:
            raise DataError(f"{self.root}: the list of the split names no image")
        builder = RecordsBuilder()
        ids = {category.name: category.id for category in self._categories}
        for name in found:
            try:
                file = self._file(name)
                image = self.image_name(name, file)
                size = file.size or stored_size(self.images / image, exif=self.exif)
            except DataError as error:
                said = f"{name} is left out: {error}"
                builder.faults.append(Fault("bad annotation file", None, None, said, loses=True))
                continue
            for said, loses in file.faults:
                kind = "bad object" if loses else "ignored region"
                builder.faults.append(Fault(kind, builder.next_id, None, said, loses=loses))
            truths = [
                Truth(ids[label], (x0, y0, x1 - x0, y1 - y0), difficult)
                for label, (x0, y0, x1, y1), difficult in file.objects
            ]
            builder.add(image, size, truths)
        if not builder.names:
            first = builder.faults[0].detail
            raise DataError(f"{self.root}: no annotation of the split can be used; the first: {first}")
        return Annotations(self.images, self._categories, *builder.build())

    def read_categories(self, found: Any) -> tuple[Category, ...]:
        return self._categories

    def _file(self, name: str) -> AnnotationFile:
        """That of an image, which a list of a split may name though there is none."""
        file = self._files[name] if name in self._files else self.read_file(self.annotations / f"{name}.{self.ending}")
        if isinstance(file, DataError):
            raise file
        return file


def is_readable(path: Path, read: Callable[[Path], AnnotationFile]) -> bool:
    """Whether a file is of the format that is read so."""
    try:
        read(path)
    except DataError:
        return False
    return True


def all_names(annotations: Path, ending: str) -> list[str]:
    """The names of all images that have an annotation, those in folders of a split too, sorted.

    Args:
        ending: of the annotations, such as "xml".
    """
    splits = [annotations / name for names in SPLITS.values() for name in names]
    return sorted(
        names_in(annotations, ending) + [name for split in splits for name in names_in(split, ending, split.name)]
    )


def names_in(place: Path, ending: str, before: str = "") -> list[str]:
    """The names of the images that have an annotation in a folder, sorted, after `before`."""
    return sorted(os.path.join(before, path.stem) for path in place.glob(f"*.{ending}"))


def split_folder(annotations: Path, split: str, ending: str) -> Path | None:
    """The folder with the annotations of a split; None without one."""
    folders = [annotations / name for name in SPLITS[split]]
    return next((path for path in folders if any(path.glob(f"*.{ending}"))), None)


def image_of_name(images: Path, name: str) -> str | None:
    """The file of an image below a folder, by its name without the ending; None where there is none."""
    return next((f"{name}.{ending}" for ending in ENDINGS if (images / f"{name}.{ending}").is_file()), None)
