"""Sets in YOLO's format without a data.yaml: Darknet's obj.data, or a list of the classes near the images."""

from __future__ import annotations

import re
from pathlib import Path

from detrkit.data.files import TEXT
from detrkit.data.yolo import SPLITS, WHOLE, YoloSet, without_its_start
from detrkit.errors import DataError

LISTS = ("classes.txt", "obj.names", "_darknet.labels")
"""of classes, a name a line: of labelImg and Label Studio; of Darknet and CVAT; of Roboflow"""


def find_darknet(root: Path) -> Path | None:
    """The file that describes a set: itself, the folder's only .data, or a list of classes there or in a split's."""
    if root.is_file():
        return root if root.suffix == ".data" or root.name in LISTS else None
    described = [path for path in root.glob("*.data") if _has_names(path)]
    if len(described) == 1:
        return described[0]
    folders = [root, *(root / name for names in SPLITS.values() for name in names)]
    return next((folder / name for folder in folders for name in LISTS if (folder / name).is_file()), None)


def read_darknet(file: Path, root: Path) -> YoloSet:
    """What such a file says of a set, and the folder of the set shows. Raises ``DataError`` where it is not there.

    Beside a list of classes, ``train`` and ``val`` (or ``valid``) are splits, as folders of their own or in ``images``;
    without them all images are one set.
    """
    if file.suffix == ".data":
        said, base = _entries(file), file.parent
        names = _below(file, "names", said.get("names", ""))
        given = {split: next((said[key] for key in keys if said.get(key)), "") for split, keys in SPLITS.items()}
        entries = {split: (_below(file, split, value),) for split, value in given.items() if value}
    else:
        names, base = file, root if root.is_dir() else file.parent
        places = {split: [base / a / b for a in ("", "images") for b in keys] for split, keys in SPLITS.items()}
        found = {split: next((place for place in near if place.is_dir()), None) for split, near in places.items()}
        entries = {split: (place,) for split, place in found.items() if place}
    if not entries:
        entries = {WHOLE: (base / "images" if (base / "images").is_dir() else base,)}
    classes = tuple(line.strip() for line in _lines(names) if line.strip())
    if not classes:
        raise DataError(f"{names}: names no class; it should have a name in each line")
    return YoloSet(file, base, classes, entries)


def _has_names(path: Path) -> bool:
    """Whether a file has a line ``names = ...`` near its beginning; what else ends in .data may be anything."""
    try:
        with path.open("rb") as file:
            return re.search(rb"^\s*names\s*=", file.read(4096), re.MULTILINE) is not None
    except OSError:
        return False


def _entries(path: Path) -> dict[str, str]:
    """The lines ``key = value`` of a file."""
    pairs = (line.partition("=") for line in _lines(path))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _below(file: Path, key: str, said: str) -> Path:
    found = without_its_start(file.parent, said.replace("\\", "/"))
    if not said or found is None:
        raise DataError(f"{file}: {key}: there is no {said or 'such entry'} below {file.parent}")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding=TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
