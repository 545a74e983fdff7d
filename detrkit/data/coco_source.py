"""Data part ``coco``: a data set in COCO's format, in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image

from detrkit.data.coco import first_file_names, read_categories, read_coco
from detrkit.data.dataset import Dataset, DataSource, Split
from detrkit.data.decode import Exif, decode
from detrkit.data.files import find_files
from detrkit.data.records import Category, Fault, Labels, Records
from detrkit.data.transforms import Augment, NoAugment
from detrkit.errors import DataError
from detrkit.recipe import Factory, Slot, register

# Annotation file and image folder below the root: COCO's own, the plain one, and Roboflow's export.
LAYOUTS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "train"),
        ("train/_annotations.coco.json", "train"),
    ),
    "val": (
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val.json", "val"),
        ("valid/_annotations.coco.json", "valid"),
    ),
}


@dataclass(frozen=True)
class SplitFiles:
    """Where one split is, if not in a known place below the root; relative to the root if there is one."""

    annotations: str | None = None
    images: str | None = None


def image_folder_of(annotations: Path) -> Path:
    """The folder with the images of an annotation file: near it, and with the most of the first that it names."""
    names = first_file_names(annotations)
    near = [annotations.parent, annotations.parent.parent]
    candidates = [*near, *(entry for folder in near for entry in sorted(folder.iterdir()) if entry.is_dir())]
    found = {folder: sum(_is_file(folder / name) for name in names) for folder in candidates}
    best = max(candidates, key=found.__getitem__)  # the nearest of equals
    if not found[best]:
        some = names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more that were tried)"
        raise DataError(f"{annotations}: where are its images? {some} is in no folder beside it; name the folder")
    return best


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be read, or with a name that is too long
        return False


class CocoDataset(Dataset):
    """One split in COCO's format."""

    def __init__(
        self,
        *,
        split: Split,
        labels: Labels,
        augment: Augment,
        folder: Path,
        categories: tuple[Category, ...],
        records: Records,
        faults: list[Fault],
        exif: Exif = "upright",
    ):
        super().__init__(split=split, labels=labels, augment=augment)
        self.exif = exif
        self.folder = folder
        self._categories = categories
        found = find_files(folder, records.file_names.tolist())
        self._records = replace(records, file_names=np.array(found.names, dtype=np.str_))
        self._missing = found.missing
        self._faults = [*faults, *(_found_otherwise(folder, way, *said) for way, said in found.ways.items())]

    records = property(lambda self: self._records)
    faults = property(lambda self: self._faults)
    real_categories = property(lambda self: self._categories)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def missing_files(self) -> list[tuple[int, Path]]:
        return [(self.image_id(index), self.image_path(index)) for index in self._missing]

    def image_path(self, index: int) -> Path:
        """The image's file."""
        return self.folder / str(self._records.file_names[index])

    def read(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        height, width = self._records.sizes[index].tolist()
        image = decode(self.image_path(index), size=(height, width), exif=self.exif)
        boxes, category_ids = self._records.training_boxes(index)
        return image, boxes, self.labels.of(category_ids)


def _found_otherwise(folder: Path, way: str, count: int, example: str) -> Fault:
    detail = f"{count} file names are found in {folder} {way} ({example})"
    return Fault("file names", None, None, detail, loses=False)


def open_annotations(path: Path, folder: Path | None = None) -> CocoDataset:
    """One annotation file by itself, its images as they are; ``folder`` is looked for where it is None."""
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file")
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    folder = folder or image_folder_of(path)
    categories, records, faults = read_coco(path, folder)
    return CocoDataset(
        split="val",
        labels=Labels(categories),
        augment=NoAugment(),
        folder=folder,
        categories=categories,
        records=records,
        faults=faults,
    )


@register("data", "coco")
class CocoSource(DataSource):
    """A data set in COCO's format.

    root: folder with ``annotations/instances_<split>2017.json`` and ``<split>2017/``, or
    ``annotations/instances_<split>.json`` and ``<split>/``, or Roboflow's ``<split>/_annotations.coco.json``.
    train, val: files elsewhere (``annotations``, ``images``). labels: ``contiguous`` numbers the categories
    0..K-1 by id; ``category_id`` keeps their ids, as official checkpoints with 91 outputs need. exif: whether
    boxes are for images turned ``upright`` by their EXIF orientation or for the pixels as ``stored``; it
    decides only where the annotated size fits both, and `detrkit check-data` names such images.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        train: SplitFiles = SplitFiles(),
        val: SplitFiles = SplitFiles(),
        labels: Literal["contiguous", "category_id"] = "contiguous",
        exif: Exif = "upright",
        augment: Annotated[Factory, Slot("augment")] = "detr",  # type: ignore[assignment]
    ):
        super().__init__(augment=augment())
        self._root = Path(root).expanduser() if root is not None else None
        self._files = {"train": train, "val": val}
        self._exif: Exif = exif
        self._keep_ids = labels == "category_id"

    @cached_property
    def labels(self) -> Labels:
        path, _ = self.files("val" if self.has("val") and not self.has("train") else "train")
        return Labels(read_categories(path), keep_ids=self._keep_ids)

    def files(self, split: Split) -> tuple[Path, Path]:
        """The annotation file and the image folder of a split; ``DataError`` where they are not found."""
        given = self._files[split]
        base = self._root or Path()
        if self._root is None and given.annotations is None:
            raise DataError(
                f"where is the data set? Set data.root, or data.{split}.annotations and data.{split}.images"
            )
        if self._root is not None and not self._root.is_dir():
            raise DataError(f"data.root: {self._root} is not a folder")
        if given.annotations is not None:
            annotations = base / Path(given.annotations).expanduser()
            images = None
        else:
            found = [(base / a, base / b) for a, b in LAYOUTS[split] if (base / a).is_file()]
            if not found:
                raise DataError(
                    f"data.root: {self._root} has no {split} annotations; looked for "
                    + ", ".join(annotations for annotations, _ in LAYOUTS[split])
                )
            annotations, images = found[0]
        if given.images is not None:
            images = base / Path(given.images).expanduser()
        if not annotations.is_file():
            raise DataError(f"data.{split}.annotations: {annotations} is not a file")
        if images is None:
            images = image_folder_of(annotations)
        if not images.is_dir():
            raise DataError(f"data.{split}.images: {images} is not a folder")
        return annotations, images

    def has(self, split: Split) -> bool:
        """Whether the recipe names the split's annotations, or they stand in a known place."""
        known = self._root is not None and any((self._root / a).is_file() for a, _ in LAYOUTS[split])
        return self._files[split].annotations is not None or known

    def open(self, split: Split) -> CocoDataset:
        path, folder = self.files(split)
        categories, records, faults = read_coco(path, folder, exif=self._exif)
        known = {category.id: category.name for category in self.categories}
        for category in categories:
            if known.get(category.id) != category.name:
                other = f"is {known[category.id]!r}" if category.id in known else "does not exist"
                raise DataError(
                    f"{path}: category {category.id} is {category.name!r} here, but {other} in the other "
                    "split; both splits need the same categories"
                )
        return CocoDataset(
            split=split,
            labels=self.labels,
            augment=self.augment,
            folder=folder,
            categories=categories,
            records=records,
            faults=faults,
            exif=self._exif,
        )
