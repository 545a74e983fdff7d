"""Data part ``coco``: a data set in COCO's format, in a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from detrkit.data.coco import first_file_names, is_coco, read_categories, read_coco
from detrkit.data.dataset import Split
from detrkit.data.decode import Exif
from detrkit.data.file_dataset import Annotations, FileDataset, Reduced, Unreadable
from detrkit.data.file_source import FileSource, Numbering, Share
from detrkit.data.files import find_files
from detrkit.data.records import Category, Labels
from detrkit.data.transforms import NoAugment
from detrkit.errors import DataError
from detrkit.paths import with_home
from detrkit.recipe import Given, Slot, register

# Annotation file and image folder below the root: COCO's own, the plain one with the images in a folder of its own or
# as CVAT exports them, Roboflow's export, and FiftyOne's.
LAYOUTS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances_Train.json", "images/Train"),
        ("train/_annotations.coco.json", "train"),
        ("train/labels.json", "train/data"),
    ),
    "val": (
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val.json", "val"),
        ("annotations/instances_val.json", "images/val"),
        ("annotations/instances_Validation.json", "images/Validation"),
        ("valid/_annotations.coco.json", "valid"),
        ("val/_annotations.coco.json", "val"),
        ("val/labels.json", "val/data"),
        ("validation/labels.json", "validation/data"),
    ),
}


@dataclass(frozen=True)
class SplitFiles:
    """Where one split is, if not in a known place below the root; relative to the root if there is one."""

    annotations: str | None = None
    """the annotation file (.json)"""
    images: str | None = None
    """the folder of images"""


def image_folder_of(annotations: Path) -> Path:
    """The folder with the images of an annotation file: near it, and with the most of the first that it names.

    Raises ``DataError`` where no such folder has one, or the file is no annotation file.
    """
    names = first_file_names(annotations)
    near = [annotations.parent, annotations.parent.parent]
    candidates = [*near, *(entry for folder in near for entry in _folders(folder))]
    # CVAT's images/default/, where there is nothing of that name nearer
    candidates += [entry for name in ("images", "data") for folder in near for entry in _folders(folder / name)]
    found = {folder: sum(_is_file(folder / name) for name in names) for folder in candidates}
    if not any(found.values()):  # as exporters write them
        found = {folder: len(names) - len(find_files(folder, names).missing) for folder in candidates}
    best = max(candidates, key=found.__getitem__)  # the nearest of equals
    if not found[best]:
        some = names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more that were tried)"
        raise DataError(f"{annotations}: where are its images? {some} is in no folder beside it; name the folder")
    return best


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:  # there is none, or it may not be read
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be read, or with a name that is too long
        return False


def open_annotations(path: Path, folder: Path | None = None) -> FileDataset:
    """One annotation file by itself, its images as they are; ``folder`` is looked for where it is None.

    Raises ``DataError`` where there is no such file or folder, or the file cannot be used.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file")
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    folder = folder or image_folder_of(path)
    annotations = Annotations(folder, *read_coco(path, folder))
    return FileDataset(split="val", labels=Labels(annotations.categories), augment=NoAugment(), annotations=annotations)


@register("data", "coco")
class CocoSource(FileSource):
    """A data set in COCO's format.

    Args:
        root: folder with ``annotations/instances_<split>2017.json`` and ``<split>2017/``, or
            ``annotations/instances_<split>.json`` and ``<split>/`` or, as CVAT has it, ``images/<split>/``, or
            Roboflow's ``<split>/_annotations.coco.json``, or FiftyOne's ``<split>/labels.json`` and ``<split>/data/``,
            or with one annotation file for all images.
        train: files of the training split that lie elsewhere.
        val: files of the validation split that lie elsewhere.
        labels: ``contiguous`` numbers the categories 0..K-1 by id; ``category_id`` keeps their ids, as official
            checkpoints with 91 outputs need.
        exif: whether boxes are for images turned ``upright`` by their EXIF orientation or for the pixels as
            ``stored``; it decides only where the annotated size fits both, and `detrkit check-data` names such images.
        val_share: the share of images to validate on, drawn by split_seed, for a set that has no val split; "none": a
            val split has to be there.
        split_seed: another seed draws other images to validate on.
        unreadable: whether an image that cannot be read in the middle of a training should ``stop`` it, or ``skip``:
            another image stands in its place (in an evaluation a black one), and it is counted and named.
        repeat_threshold: a class in a share f of the images, smaller than this, counts sqrt(threshold / f) times, and
            an image is seen as often as its rarest class says (LVIS: 0.001); an epoch is as long as without it.
        size_pool: batches whose images are drawn together in training, and then divided into batches by the sizes that
            they will have, so that less is padded (32 leaves a quarter of it at 16 images); 0: batches are drawn image
            by image.
        reduced_jpeg: where a JPEG file at least twice as large as what it is resized to is decoded at a half, a quarter
            or an eighth: in ``train``, so that an evaluation sees what it has always seen, ``always`` or ``never``. A
            worker makes 1.9 times (1600 pixels wide, to 800 high) to 10 times (4000, to 288) as many images a second.
            Pixels differ by a few of 255 from those of a file that is decoded whole; AP of a trained run was 45.0 of
            the ones and 45.3 of the others.
        augment: of the training images.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        train: SplitFiles = SplitFiles(),
        val: SplitFiles = SplitFiles(),
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
            root=root,
            labels=labels,
            exif=exif,
            val_share=val_share,
            split_seed=split_seed,
            unreadable=unreadable,
            repeat_threshold=repeat_threshold,
            size_pool=size_pool,
            reduced_jpeg=reduced_jpeg,
            augment=augment,
        )
        self._files = {"train": train, "val": val}

    def describe(self) -> str:
        found = [path for path, _ in filter(None, (self.find("train"), self.find("val")))]
        whole = self.find_whole()
        found = found or ([whole[0]] if whole else [])
        root = self.root
        return "COCO: " + ", ".join(
            str(path.relative_to(root) if root and path.is_relative_to(root) else path) for path in found
        )

    def find(self, split: Split) -> tuple[Path, Path] | None:
        known = self.root is not None and any((self.root / a).is_file() for a, _ in LAYOUTS[split])
        return self.files(split) if known or self._files[split].annotations is not None else None

    def find_whole(self) -> tuple[Path, Path] | None:
        if self.root is None or any(files.annotations for files in self._files.values()):
            return None
        near = [*self.root.glob("*.json"), *self.root.glob("annotations/*.json")]
        found = [path for path in sorted(near) if is_coco(path)]
        return (found[0], image_folder_of(found[0])) if len(found) == 1 else None

    def read(self, found: tuple[Path, Path]) -> Annotations:
        path, folder = found
        return Annotations(folder, *read_coco(path, folder, exif=self.exif))

    def read_categories(self, found: tuple[Path, Path]) -> tuple[Category, ...]:
        return read_categories(found[0])

    def no_split(self, split: Split) -> DataError:
        try:
            self.files(split)
        except DataError as error:
            alone = self.find_whole() is not None or (split == "val" and self.find("train") is not None)
            advice = "; to validate on a share of the images set data.val_share=0.2" if alone else ""
            return DataError(f"{error}{advice}")
        raise AssertionError(f"{split} is there")  # `find` would have found it

    def files(self, split: Split) -> tuple[Path, Path]:
        """The annotation file and the image folder of a split; ``DataError`` where they are not found."""
        given = self._files[split]
        base = self.root or Path()
        if self.root is None and given.annotations is None:
            raise DataError(
                f"where is the data set? Set data.root, or data.{split}.annotations and data.{split}.images"
            )
        if self.root is not None and not self.root.is_dir():
            raise DataError(f"data.root: {self.root} is not a folder")
        if given.annotations is not None:
            annotations = base / with_home(given.annotations)
            images = None
        else:
            found = [(base / a, base / b) for a, b in LAYOUTS[split] if (base / a).is_file()]
            if not found:
                raise DataError(
                    f"data.root: {self.root} has no {split} annotations; looked for "
                    + ", ".join(dict.fromkeys(annotations for annotations, _ in LAYOUTS[split]))
                )
            annotations, images = next((one for one in found if one[1].is_dir()), found[0])
            # Where one split has a folder, the other's images, often of the same names, are missing.
            if not any((base / b).is_dir() for layouts in LAYOUTS.values() for _, b in layouts):
                images = None
        if given.images is not None:
            images = base / with_home(given.images)
        if not annotations.is_file():
            raise DataError(f"data.{split}.annotations: {annotations} is not a file")
        if images is None:
            images = image_folder_of(annotations)
        if not images.is_dir():
            raise DataError(f"data.{split}.images: {images} is not a folder")
        return annotations, images
