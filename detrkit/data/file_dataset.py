"""A split whose images are files, and what a format's reader gives of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from detrkit.data.dataset import Dataset, Split
from detrkit.data.decode import Exif, decode
from detrkit.data.files import find_files
from detrkit.data.records import Category, Fault, Labels, Records
from detrkit.data.transforms import Augment, Sample, make_sample

Unreadable = Literal["stop", "skip"]
Reduced = Literal["never", "train", "always"]


@dataclass(frozen=True)
class Annotations:
    """What a format's reader found: the images below `folder`, what is known of them, and what is wrong with it."""

    folder: Path
    categories: tuple[Category, ...]
    records: Records
    faults: list[Fault]

    def share(self, share: float, seed: int, *, of_val: bool) -> Annotations:
        """The images of one of the two splits that a seed draws: `share` of them, at least one, are for validation.

        Which they are depends on the seed and on the files' names alone, so it is the same on every machine, and an
        image that is added moves no other one far.
        """
        names = self.records.file_names.tolist()
        order = sorted(range(len(names)), key=lambda index: _draw(seed, names[index]))
        drawn = set(order[: max(1, round(share * len(names)))])
        return self.only([index for index in range(len(names)) if (index in drawn) == of_val])

    def only(self, images: Sequence[int]) -> Annotations:
        """Some of the images, with their faults and those of the whole set."""
        kept = set(self.records.image_ids[list(images)].tolist())
        given = {self.records.given_id(image_id) for image_id in kept}
        faults = [fault for fault in self.faults if fault.image_id is None or fault.image_id in given]
        return replace(self, records=self.records.only(images), faults=faults)


def _draw(seed: int, name: str) -> bytes:
    text = f"{seed}/{name}"
    try:
        written = text.encode("utf-8", "surrogateescape")  # the bytes of a file's name that is no UTF-8
    except UnicodeEncodeError:  # half of a pair, which JSON can name and no file
        written = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(written, digest_size=8).digest()


class FileDataset(Dataset):
    """One split in a format whose images are files."""

    def __init__(
        self,
        *,
        split: Split,
        labels: Labels,
        augment: Augment,
        annotations: Annotations,
        exif: Exif = "upright",
        unreadable: Unreadable = "stop",
        reduced: bool = False,
    ):
        super().__init__(split=split, labels=labels, augment=augment)
        self.reduced = reduced
        self.exif, self.unreadable = exif, unreadable
        self.way_past = '. data.unreadable = "skip" leaves out what cannot be read' if unreadable == "stop" else ""
        self.folder = annotations.folder
        self._categories = annotations.categories
        found = find_files(self.folder, annotations.records.file_names.tolist())
        self._records = replace(annotations.records, file_names=np.array(found.names, dtype=np.str_))
        self._missing = found.missing
        otherwise = (_found_otherwise(self.folder, way, *said) for way, said in found.ways.items())
        self._faults = [*annotations.faults, *otherwise]

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

    def instead_of(self, index: int) -> int | None:
        """The next image, with ``unreadable = "skip"``: the same in every process and after a resume."""
        return (index + 1) % len(self) if self.unreadable == "skip" and len(self) > 1 else None

    def read(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        return self._read(index, None)

    def sample(self, index: int, wanted: tuple[int, int] | None) -> Sample:
        height, width = self._records.sizes[index].tolist()
        return make_sample(*self._read(index, wanted), size=(height, width))

    def _read(self, index: int, wanted: tuple[int, int] | None) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        height, width = self._records.sizes[index].tolist()
        image = decode(self.image_path(index), size=(height, width), exif=self.exif, wanted=wanted)
        boxes, category_ids = self._records.training_boxes(index)
        return image, boxes, self.labels.of(category_ids)


def _found_otherwise(folder: Path, way: str, count: int, example: str) -> Fault:
    detail = f"{count} file names are found in {folder} {way} ({example})"
    return Fault("file names", None, None, detail, loses=False)
