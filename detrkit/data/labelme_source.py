"""Data part ``labelme``: a data set in LabelMe's format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from detrkit.data.dataset import Split
from detrkit.data.file_dataset import Annotations
from detrkit.data.file_source import FileSource
from detrkit.data.labelme import LabelMeFile, find_labelme, read_labelme, read_labelme_file
from detrkit.data.per_image import all_names, names_in, split_folder
from detrkit.data.records import Category
from detrkit.errors import DataError
from detrkit.recipe import register
from detrkit.wording import counted


@register("data", "labelme")
class LabelMeSource(FileSource):
    """A data set in LabelMe's format, as LabelMe and X-AnyLabeling write it.

    Category ids count the labels, sorted, from 1. A shape's box is the smallest around it, and shapes of one label and
    ``group_id`` are one object. Points and lines have no box and are left out.

    Args:
        root: the folder with JSON files beside their images, or with folders ``train`` and ``val`` of these; or with
            the JSON files in ``annotations`` or ``labels``.
        labels, exif, val_share, split_seed, unreadable, repeat_threshold, size_pool, reduced_jpeg, augment: as for
            `coco`.
    """

    @cached_property
    def folder(self) -> Path:
        """Where the set's files are."""
        if self.root is None:
            raise DataError("where is the data set? Set data.root to the folder with LabelMe's .json files")
        folder = find_labelme(self.root)
        if folder is None:
            raise DataError(f"data.root: {self.root} has no LabelMe annotations (.json) beside images or in labels")
        return folder

    @cached_property
    def _files(self) -> dict[str, LabelMeFile | DataError]:
        """All files, read once: they may have whole images in them."""
        found: dict[str, LabelMeFile | DataError] = {}
        for name in all_names(self.folder, "json"):
            try:
                found[name] = read_labelme_file(self.folder / f"{name}.json")
            except DataError as error:
                found[name] = error  # named where its split is read
        return found

    @cached_property
    def _categories(self) -> tuple[Category, ...]:
        names = {
            label for file in self._files.values() if isinstance(file, LabelMeFile) for label, _, _ in file.objects
        }
        return tuple(Category(number, name) for number, name in enumerate(sorted(names), start=1))

    def describe(self) -> str:
        folders = [split_folder(self.folder, split, "json") for split in ("train", "val")]
        names = ", ".join(path.name for path in folders if path) or "not split"
        return f"LabelMe: {self.folder.name}, {counted(len(self._categories), 'class')}, {names}"

    def find(self, split: Split) -> Sequence[str] | None:
        place = split_folder(self.folder, split, "json")
        return names_in(place, "json", place.name) if place else None

    def find_whole(self) -> Sequence[str] | None:
        return list(self._files)

    def read(self, found: Sequence[str]) -> Annotations:
        return read_labelme(self.folder, found, self._files, self._categories, exif=self.exif)

    def read_categories(self, found: Sequence[str]) -> tuple[Category, ...]:
        return self._categories

    def no_split(self, split: Split) -> DataError:
        return DataError(
            f"{self.folder}: has no folder {split} with LabelMe's files; to validate on a share of the images set "
            "data.val_share=0.2"
        )
