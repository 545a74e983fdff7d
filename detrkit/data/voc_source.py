"""Data part ``voc``: a data set in Pascal VOC's format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from detrkit.data.dataset import Split
from detrkit.data.per_image import AnnotationFile, PerImageSource
from detrkit.data.voc import VocFolder, find_list, find_names, find_voc, image_name, read_xml
from detrkit.errors import DataError
from detrkit.recipe import register
from detrkit.wording import counted


@register("data", "voc")
class VocSource(PerImageSource):
    """A data set in Pascal VOC's format.

    Category ids count the classes' names, sorted, from 1. Difficult objects are neither learned nor counted.

    Args:
        root: the folder with ``Annotations``, ``JPEGImages`` (or ``images``, or the images beside ``Annotations``) and,
            where the set is split, ``ImageSets/Main/train.txt`` and ``val.txt``, or folders of these names in both; a
            VOCdevkit with one such folder will do. Or a folder with XML files beside their images, as labelImg writes
            them; or with ``train`` and ``valid`` of these, as Roboflow does.
        labels, exif, val_share, split_seed, unreadable, repeat_threshold, size_pool, reduced_jpeg, augment: as for
            `coco`.
    """

    ending = "xml"

    @cached_property
    def folder(self) -> VocFolder:
        """Where the set's files are."""
        if self.root is None:
            raise DataError("where is the data set? Set data.root to the folder with Annotations and JPEGImages")
        folder = find_voc(self.root)
        if folder is None:
            raise DataError(f"data.root: {self.root} has no VOC annotations (.xml) in Annotations or beside images")
        return folder

    @property
    def annotations(self) -> Path:
        return self.folder.annotations

    @property
    def images(self) -> Path:
        return self.folder.images

    def read_file(self, path: Path) -> AnnotationFile:
        return read_xml(path)

    def image_name(self, name: str, file: AnnotationFile) -> str:
        return image_name(self.images, name, file)

    def describe(self) -> str:
        lists = [path.name for path in (find_list(self.folder, "train"), find_list(self.folder, "val")) if path]
        classes = counted(len(self._categories), "class")
        return f"Pascal VOC: {self.folder.root.name}, {classes}, {', '.join(lists) or 'not split'}"

    def find(self, split: Split) -> Sequence[str] | None:
        return find_names(self.folder, split)

    def no_split(self, split: Split) -> DataError:
        return DataError(
            f"{self.folder.root}: has no ImageSets/Main/{split}.txt and no folder of that name; to validate on a share "
            "of the images set data.val_share=0.2"
        )
