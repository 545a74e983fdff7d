"""Reading Pascal VOC's format: an XML file of boxes for each image, and lists of the images of a split."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detrkit.data.building import RecordsBuilder, Truth
from detrkit.data.decode import Exif, stored_size
from detrkit.data.file_dataset import Annotations
from detrkit.data.files import TEXT
from detrkit.data.records import Category, Fault
from detrkit.errors import DataError

LISTS = {"train": ("train", "trainval"), "val": ("val", "valid", "test")}
ENDINGS = ("jpg", "jpeg", "png", "JPG", "JPEG", "PNG", "bmp", "tif", "webp")


@dataclass(frozen=True)
class VocFile:
    """One XML file as read. objects: name, (xmin, ymin, xmax, ymax) and whether it is difficult; faults in words."""

    stem: str
    file_name: str | None
    size: tuple[int, int] | None
    objects: Sequence[tuple[str, tuple[float, float, float, float], bool]]
    faults: Sequence[str]


def find_voc(root: Path) -> Path | None:
    """The folder with Annotations: the root, or below VOCdevkit."""
    near = [root, *sorted(root.glob("VOCdevkit/*")), *sorted(root.glob("VOC*"))]
    return next((folder for folder in near if any((folder / "Annotations").glob("*.xml"))), None)


def find_list(folder: Path, split: str) -> Path | None:
    """The text file that names the images of a split; None where there is none."""
    lists = [folder / "ImageSets" / "Main" / f"{name}.txt" for name in LISTS[split]]
    lists += [folder / "ImageSets" / f"{name}.txt" for name in LISTS[split]]
    return next((path for path in lists if path.is_file()), None)


def find_names(folder: Path, split: str) -> list[str] | None:
    """The names of a split's images; None where no list has them. Of a trainval, those that val has are not train's."""
    path = find_list(folder, split)
    if path is None:
        return None
    val = find_list(folder, "val") if split == "train" and path.stem == "trainval" else None
    others = set(listed(val, folder)) if val else set()
    return [name for name in listed(path, folder) if name not in others]


def listed(path: Path, folder: Path) -> list[str]:
    """The names in a list, each once. Raises ``DataError`` where it cannot be read."""
    try:
        lines = path.read_text(encoding=TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return list(dict.fromkeys(_listed_name(line, folder) for line in lines if line.strip()))


def _listed_name(line: str, folder: Path) -> str:
    """A line if an annotation has that name, else its first word: lists of a class have a second, of 1, 0 or -1."""
    whole, first = line.strip().removesuffix(".xml"), line.split()[0].removesuffix(".xml")
    return whole if whole == first or os.path.isfile(folder / "Annotations" / f"{whole}.xml") else first


def read_xml(path: Path) -> VocFile:
    """Read one file of annotations. Raises ``DataError`` where it is no such file, or declares entities."""
    try:
        text = path.read_bytes()
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # nothing of VOC's needs one, and they can grow without end
            raise DataError(f"{path}: declares entities, which no VOC annotation does")
        tree = ElementTree.fromstring(text)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise DataError(f"{path}:{error.position[0]}: is not XML: {error}") from error
    if tree.tag != "annotation":
        raise DataError(f"{path}: is not a VOC annotation (<annotation> is missing, there is <{tree.tag}>)")
    height, width = (_number(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    size = (int(height), int(width)) if height and width and min(height, width) >= 1 else None
    objects, faults = [], []
    for place, one in enumerate(tree.findall("object"), start=1):
        name = (one.findtext("name") or "").strip()
        sides = [_number(one.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        numbers = [side for side in sides if side is not None]
        if not name or len(numbers) != 4:
            faults.append(f"{path}: object {place} needs a name and a bndbox of four numbers: left out")
            continue
        difficult = (one.findtext("difficult") or "0").strip() == "1"
        objects.append((name, (numbers[0], numbers[1], numbers[2], numbers[3]), difficult))
    return VocFile(path.stem, tree.findtext("filename"), size, objects, faults)


def read_voc(
    folder: Path, stems: Sequence[str], categories: Sequence[Category], *, exif: Exif = "upright"
) -> Annotations:
    """Read the images of a split.

    Boxes are (xmin, ymin, xmax - xmin, ymax - ymin), as they stand in the files. Difficult objects are regions that
    count neither as found nor as missed, as in VOC's own evaluation, and are not learned. Raises ``DataError`` where
    no image is left.
    """
    if not stems:
        raise DataError(f"{folder}: the list of the split names no image")
    builder = RecordsBuilder()
    ids = {category.name: category.id for category in categories}
    images = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    for stem in stems:
        path = folder / "Annotations" / f"{stem}.xml"
        try:
            file = read_xml(path)
            name = _image_name(images, file)
            size = file.size or stored_size(images / name, exif=exif)
        except DataError as error:
            builder.faults.append(Fault("bad annotation file", None, None, f"{stem} is left out: {error}", loses=True))
            continue
        builder.faults += [Fault("bad object", builder.next_id, None, said, loses=True) for said in file.faults]
        truths = [
            Truth(ids[label], (x0, y0, x1 - x0, y1 - y0), difficult)
            for label, (x0, y0, x1, y1), difficult in file.objects
        ]
        builder.add(name, size, truths)
    if not builder.names:
        raise DataError(f"{folder}: no annotation of the split can be used; the first: {builder.faults[0].detail}")
    return Annotations(images, tuple(categories), *builder.build())


def _image_name(images: Path, file: VocFile) -> str:
    """The image's file: of the annotation's own name, as VOC has it, or what the annotation says."""
    names = [f"{file.stem}.{ending}" for ending in ENDINGS]
    said = (file.file_name or "").replace("\\", "/").rpartition("/")[2]
    return next((name for name in names if (images / name).is_file()), said or names[0])


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
