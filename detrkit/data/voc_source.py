"""Data part ``voc``: a data set in Pascal VOC's format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from detrkit.data.dataset import Split
from detrkit.data.file_dataset import Annotations
from detrkit.data.file_source import FileSource
from detrkit.data.records import Category
from detrkit.data.voc import VocFolder, all_names, find_list, find_names, find_voc, read_voc, read_xml
from detrkit.errors import DataError
from detrkit.recipe import register
from detrkit.wording import counted


@register("data", "voc")
class VocSource(FileSource):
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

    @cached_property
    def folder(self) -> VocFolder:
        """Where the set's files are."""
        if self.root is None:
            raise DataError("where is the data set? Set data.root to the folder with Annotations and JPEGImages")
        folder = find_voc(self.root)
        if folder is None:
            raise DataError(f"data.root: {self.root} has no VOC annotations (.xml) in Annotations or beside images")
        return folder

    @cached_property
    def _categories(self) -> tuple[Category, ...]:
        names: set[str] = set()
        for image in all_names(self.folder.annotations):
            try:
                names |= {name for name, _, _ in read_xml(self.folder.annotations / f"{image}.xml").objects}
            except DataError:
                continue  # named where its split is read
        return tuple(Category(number, name) for number, name in enumerate(sorted(names), start=1))

    def describe(self) -> str:
        lists = [path.name for path in (find_list(self.folder, "train"), find_list(self.folder, "val")) if path]
        classes = counted(len(self._categories), "class")
        return f"Pascal VOC: {self.folder.root.name}, {classes}, {', '.join(lists) or 'not split'}"

    def find(self, split: Split) -> Sequence[str] | None:
        return find_names(self.folder, split)

    def find_whole(self) -> Sequence[str] | None:
        return all_names(self.folder.annotations)

    def read(self, found: Sequence[str]) -> Annotations:
        return read_voc(self.folder, found, self._categories, exif=self.exif)

    def read_categories(self, found: Sequence[str]) -> tuple[Category, ...]:
        return self._categories

    def no_split(self, split: Split) -> DataError:
        return DataError(
            f"{self.folder.root}: has no ImageSets/Main/{split}.txt and no folder of that name; to validate on a share "
            "of the images set data.val_share=0.2"
        )
