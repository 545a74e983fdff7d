"""Data part ``labelme``: a data set in LabelMe's format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from detrkit.data.dataset import Split
from detrkit.data.labelme import find_labelme, image_name, read_json
from detrkit.data.per_image import AnnotationFile, PerImageSource, names_in, split_folder
from detrkit.errors import DataError
from detrkit.recipe import register
from detrkit.wording import counted


@register("data", "labelme")
class LabelMeSource(PerImageSource):
    """A data set in LabelMe's format, as LabelMe and X-AnyLabeling write it.

    Category ids count the labels, sorted, from 1. A shape's box is the smallest around it, and shapes of one label and
    ``group_id`` are one object. Points and lines have no box and are left out.

    Args:
        root: the folder with JSON files beside their images, or with folders ``train`` and ``val`` of these; or with
            the JSON files in ``annotations`` or ``labels``.
        labels, exif, val_share, split_seed, unreadable, repeat_threshold, size_pool, reduced_jpeg, augment: as for
            `coco`.
    """

    ending = "json"

    @cached_property
    def annotations(self) -> Path:
        if self.root is None:
            raise DataError("where is the data set? Set data.root to the folder with LabelMe's .json files")
        folder = find_labelme(self.root)
        if folder is None:
            raise DataError(f"data.root: {self.root} has no LabelMe annotations (.json) beside images or in labels")
        return folder

    @property
    def images(self) -> Path:
        return self.annotations  # from where on the files name them

    def read_file(self, path: Path) -> AnnotationFile:
        return read_json(path)

    def image_name(self, name: str, file: AnnotationFile) -> str:
        return image_name(self.images, name, file)

    def describe(self) -> str:
        folders = [split_folder(self.annotations, split, "json") for split in ("train", "val")]
        names = ", ".join(path.name for path in folders if path) or "not split"
        return f"LabelMe: {self.annotations.name}, {counted(len(self._categories), 'class')}, {names}"

    def find(self, split: Split) -> Sequence[str] | None:
        place = split_folder(self.annotations, split, "json")
        return names_in(place, "json", place.name) if place else None

    def no_split(self, split: Split) -> DataError:
        return DataError(
            f"{self.annotations}: has no folder {split} with LabelMe's files; to validate on a share of the images set "
            "data.val_share=0.2"
        )
