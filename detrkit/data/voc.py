"""Reading Pascal VOC's format: an XML file of boxes for each image, and lists or folders of the images of a split."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detrkit.data.files import TEXT
from detrkit.data.per_image import (
    ENDINGS,
    SPLITS,
    AnnotationFile,
    all_names,
    image_of_name,
    is_readable,
    names_in,
    split_folder,
)
from detrkit.data.records import usable_size
from detrkit.errors import DataError


@dataclass(frozen=True)
class VocFolder:
    """Where the files of a set are; all three may be one folder.

    root: where the lists or folders of its splits are; annotations: the XML files; images: what they are of. The files
    of an image have one name, its path below these without the ending.
    """

    root: Path
    annotations: Path
    images: Path


def find_voc(root: Path) -> VocFolder | None:
    """Where a set's files are: as VOC has them, also below VOCdevkit, or XML files beside their images.

    The latter as labelImg writes them, in the root, and Roboflow, in a folder for each split.
    """
    for folder in (root, *sorted(root.glob("VOCdevkit/*")), *sorted(root.glob("VOC*"))):
        for name in ("Annotations", "annotations"):
            if first := _first_name(folder / name):
                return VocFolder(folder, folder / name, _images_near(folder, first))
    first = _first_name(root)
    return VocFolder(root, root, root) if first and is_readable(root / f"{first}.xml", read_xml) else None


def _first_name(annotations: Path) -> str | None:
    return next(iter(all_names(annotations, "xml")), None)


def _images_near(folder: Path, name: str) -> Path:
    """The folder of the images: of these that there are, the first that has the image of this name."""
    near = [place for place in (folder / "JPEGImages", folder / "images", folder) if place.is_dir()]
    return next((place for place in near if image_of_name(place, name)), near[0])


def find_list(folder: VocFolder, split: str) -> Path | None:
    """The text file that names the images of a split, or the folder with their annotations; None without either."""
    places = ("ImageSets/Main", "ImageSets")
    lists = [folder.root / place / f"{name}.txt" for place in places for name in SPLITS[split]]
    found = next((path for path in lists if path.is_file()), None)
    return found or split_folder(folder.annotations, split, "xml")


def find_names(folder: VocFolder, split: str) -> list[str] | None:
    """The names of a split's images; None where no list has them. Of a trainval, those that val has are not train's."""
    path = find_list(folder, split)
    if path is None:
        return None
    if path.is_dir():
        return names_in(path, "xml", path.name)
    val = find_list(folder, "val") if split == "train" and path.stem == "trainval" else None
    others = set(listed(val, folder)) if val and val.is_file() else set()
    return [name for name in listed(path, folder) if name not in others]


def listed(path: Path, folder: VocFolder) -> list[str]:
    """The names in a list, each once. Raises ``DataError`` where it cannot be read."""
    try:
        lines = path.read_text(encoding=TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return list(dict.fromkeys(_listed_name(line, folder) for line in lines if line.strip()))


def _listed_name(line: str, folder: VocFolder) -> str:
    """A line if an annotation has that name, else its first word: lists of a class have a second, of 1, 0 or -1."""
    whole, first = line.strip().removesuffix(".xml"), line.split()[0].removesuffix(".xml")
    return whole if whole == first or os.path.isfile(folder.annotations / f"{whole}.xml") else first


def read_xml(path: Path) -> AnnotationFile:
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
    size = usable_size(*(_number(tree.findtext(f"size/{side}")) for side in ("height", "width")))
    objects, faults = [], []
    for place, one in enumerate(tree.findall("object"), start=1):
        name = (one.findtext("name") or "").strip()
        sides = [_number(one.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        numbers = [side for side in sides if side is not None]
        if not name or len(numbers) != 4:
            faults.append((f"{path}: object {place} needs a name and a bndbox of four numbers: left out", True))
            continue
        difficult = (one.findtext("difficult") or "0").strip().lower() in ("1", "true")
        objects.append((name, (numbers[0], numbers[1], numbers[2], numbers[3]), difficult))
    return AnnotationFile(tree.findtext("filename"), size, objects, faults)


def image_name(images: Path, name: str, file: AnnotationFile) -> str:
    """The image's file: of the annotation's own name, as VOC has it, or what the annotation says."""
    said = (file.image or "").replace("\\", "/").rpartition("/")[2]
    there = image_of_name(images, name)
    return there or (os.path.join(os.path.dirname(name), said) if said else f"{name}.{ENDINGS[0]}")


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
