"""Reading YOLO's format: data.yaml, and a text file of relative boxes for each image.

Paths that files name are looked for with os.path, which takes what this machine keeps from us (/root/...) for absent.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detrkit.data.building import RecordsBuilder, Truth
from detrkit.data.decode import Exif, stored_size
from detrkit.data.file_dataset import Annotations
from detrkit.data.files import TEXT, walk
from detrkit.data.records import Category, Fault
from detrkit.errors import DataError

IMAGES = frozenset(["bmp", "dib", "jpe", "jpeg", "jpg", "jp2", "png", "ppm", "pgm", "tif", "tiff", "webp", "avif"])
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
WHOLE = "all"
"""the entry of a set that is not split"""


@dataclass(frozen=True)
class YoloSet:
    """What a data.yaml says, or what stands for it.

    entries: of each split, folders, or text files that list images, or of `WHOLE` where the set is not split;
    keypoint_numbers: how many stand behind each box.
    """

    file: Path
    base: Path
    names: tuple[str, ...]
    entries: Mapping[str, tuple[Path, ...]]
    keypoint_numbers: int = 0


def find_yaml(root: Path) -> Path | None:
    """The file that describes the set: itself, data.yaml, or the only .yaml in the folder that names classes."""
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml") else None
    near = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    named = [path for path in near if path.stem == "data"]
    if named:
        return named[0]
    with_names = [path for path in near if b"names" in path.read_bytes()]
    return with_names[0] if len(with_names) == 1 else None


def read_yaml(file: Path) -> YoloSet:
    """Read a data.yaml. Raises ``DataError`` with line or key where it cannot be used."""
    try:
        text = file.read_text(encoding="utf-8")
        said = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{file}{line}: is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(said, dict):
        raise DataError(f"{file}: should be a table with names, train and val")
    names = said.get("names")
    if isinstance(names, list | dict):  # a class called no, on or 010 is no False, True or 8
        names = yaml.load(text, yaml.BaseLoader)["names"]
    base = _base(file, said.get("path"))
    entries = {}
    for split, keys in SPLITS.items():
        value = next((said[key] for key in keys if said.get(key) not in (None, "")), None)
        if value is not None:
            entries[split] = tuple(_entry(file, base, split, one) for one in _as_list(file, split, value))
    numbers = _keypoint_numbers(file, said.get("kpt_shape"))
    return YoloSet(file, base, _names(file, names, said.get("nc")), entries, numbers)


def read_yolo(found: YoloSet, split: str, *, exif: Exif = "upright") -> Annotations:
    """Read a split: every image that its entries hold, with the boxes of its text file; none where it has none.

    The text file of ``images/a/b.jpg`` is ``labels/a/b.txt`` (the last folder called images counts), or beside it.
    A line is ``class cx cy w h`` in shares of the image, behind which keypoints may stand where the data.yaml has a
    ``kpt_shape``, or ``class x0 y0 x1 y1 ...``, a polygon, whose box is taken.
    Lines that are neither are left out, each with a fault. Images are numbered in the order of their paths.
    That no image has a text file is a fault, too: then the labels lie elsewhere. Raises ``DataError`` where there is no
    image that can be read.
    """
    paths = sorted({path for entry in found.entries[split] for path in _images_of(entry, found.base)})
    if not paths:
        where = ", ".join(map(str, found.entries[split]))
        raise DataError(f"{found.file}: {split} has no images; looked in {where}")
    builder, labelled = RecordsBuilder(), 0
    for path in paths:
        name = os.path.relpath(path, found.base)
        try:
            size = stored_size(path, exif=exif)
        except DataError as error:
            builder.faults.append(Fault("no image size", None, None, f"{name} is left out: {error}", loses=True))
            continue
        labels = label_file(path)
        labelled += labels.exists()
        builder.add(name, size, [*_truths(labels, size, found, builder)])
    if not builder.names:
        raise DataError(f"{found.file}: {split} has no image that can be read; the first: {builder.faults[0].detail}")
    if not labelled:
        detail = f"{split}: none of the images has a text file of labels; the first should have {label_file(paths[0])}"
        builder.faults.append(Fault("no label files", None, None, detail, loses=True))
    categories = tuple(Category(number, name) for number, name in enumerate(found.names))
    return Annotations(found.base, categories, *builder.build())


def label_file(image: Path) -> Path:
    """The text file with an image's boxes; where there is none, the place where it would be."""
    parts = list(image.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    beside = image.with_suffix(".txt")
    if places:
        parts[places[-1]] = "labels"
        apart = Path(*parts).with_suffix(".txt")
        return apart if apart.is_file() or not beside.is_file() else beside
    return beside


def _truths(path: Path, size: tuple[int, int], found: YoloSet, builder: RecordsBuilder) -> Iterator[Truth]:
    try:
        lines = path.read_text(encoding=TEXT).splitlines()
    except FileNotFoundError:  # an image without objects
        return
    except (OSError, UnicodeDecodeError) as error:
        detail = f"{path} is left out: {error}"
        builder.faults.append(Fault("bad label file", builder.next_id, None, detail, loses=True))
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        truth = _truth(line.split(), size, len(found.names), found.keypoint_numbers)
        if isinstance(truth, str):
            fault = Fault("bad label line", builder.next_id, None, f"{path}:{number}: {truth}: left out", loses=True)
            builder.faults.append(fault)
        else:
            yield truth


def _truth(words: list[str], size: tuple[int, int], classes: int, keypoint_numbers: int) -> Truth | str:
    """The object of a line, or what is wrong with it."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return f"{' '.join(words)[:80]!r} should be numbers, class cx cy w h"
    if not all(map(math.isfinite, numbers)):
        return "has a number that is not finite"
    label, rest = numbers[0], numbers[1:]
    if label != int(label) or not 0 <= label < classes:
        return f"class {words[0]} is none of the {classes} in names (0 to {classes - 1})"
    height, width = size
    if len(rest) in (4, 4 + keypoint_numbers):
        cx, cy, w, h = rest[:4]
        left, top = cx - w / 2, cy - h / 2
    elif len(rest) >= 6 and len(rest) % 2 == 0:
        left, top = min(rest[::2]), min(rest[1::2])
        w, h = max(rest[::2]) - left, max(rest[1::2]) - top
    else:
        return f"has {len(rest)} numbers behind the class, should have 4 (cx cy w h) or an even 6 or more (a polygon)"
    box = (left * width, top * height, w * width, h * height)
    if not all(map(math.isfinite, box)):
        return "has a number that is too large"
    return Truth(int(label), box)


def _base(file: Path, path: Any) -> Path:
    """The folder that entries are relative to. Exporters write paths of their own machine: those are passed over."""
    here = file.parent.resolve()
    said = Path(os.path.expanduser(path)) if isinstance(path, str) else Path()
    return next(folder.resolve() for folder in (here / said, here / said.name, here) if os.path.isdir(folder))


def _entry(file: Path, base: Path, split: str, said: str) -> Path:
    """A folder or list of a split. Roboflow writes ../train/images where ./train/images is meant."""
    parts = Path(said.replace("\\", "/")).parts
    plain = Path(*[part for part in parts if part not in ("..", ".", "/")])
    near = (base / said, base / Path(*parts), base / plain, file.parent / said, file.parent / plain)
    found = next(filter(os.path.exists, near), None) or without_its_start(base, str(plain), least=2)
    if found:
        return _plain(found)
    raise DataError(f"{file}: {split}: there is no {said} below {base}")


def _as_list(file: Path, split: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) for one in values):
        raise DataError(f"{file}: {split}: should be a folder, a text file, or a list of them, but is {value!r}")
    return values


def _names(file: Path, names: Any, count: Any) -> tuple[str, ...]:
    if isinstance(names, dict):
        numbers = sorted(names, key=lambda key: int(key) if str(key).isdecimal() else -1)
        if [str(number) for number in numbers] != [str(number) for number in range(len(numbers))]:
            raise DataError(f"{file}: names: the classes should be numbered 0, 1, 2, ..., but are {list(names)}")
        names = [names[number] for number in numbers]
    if names is None and isinstance(count, int) and count > 0:
        names = [f"class {number}" for number in range(count)]
    if not isinstance(names, list) or not names or any(isinstance(name, list | dict) for name in names):
        raise DataError(f"{file}: names: should be a list of class names, or a table from 0, 1, ... to them")
    return tuple(str(name) for name in names)


def _keypoint_numbers(file: Path, shape: Any) -> int:
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise DataError(f"{file}: kpt_shape: should be [keypoints, numbers of each], but is {shape!r}")
    return shape[0] * shape[1]


def _images_of(entry: Path, base: Path) -> Iterator[Path]:
    if entry.is_dir():
        yield from (path for path in walk(entry) if path.name.rpartition(".")[2].lower() in IMAGES)
        return
    try:
        lines = entry.read_text(encoding=TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{entry}: cannot be read as a list of images: {error}") from error
    for line in filter(None, map(str.strip, lines)):
        written = line.replace("\\", "/")
        near = (entry.parent / written.removeprefix("./"), base / written.removeprefix("./"), Path(written))
        found = next(filter(os.path.isfile, near), None) or without_its_start(base, written, least=2)
        yield _plain(found) if found else near[1]


def without_its_start(base: Path, written: str, least: int = 1) -> Path | None:
    """What there is below a folder of a path that was written on another machine, or for another working folder.

    least: how many parts of the path have to be left.
    """
    parts = [part for part in Path(written).parts if part not in ("/", ".", "..")]
    ends = (base / Path(*parts[start:]) for start in range(len(parts) - least + 1))
    return next(filter(os.path.exists, ends), None)


def _plain(path: Path) -> Path:
    """A path that exists, without "..". Its links stay: the labels lie beside a link to the images, not behind it."""
    plain = Path(os.path.abspath(path))
    return plain if plain.exists() else path.resolve()  # where ".." follows a link
