"""Reading LabelMe's format: a JSON file of shapes for each image."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from detrkit.data.files import TEXT
from detrkit.data.per_image import ENDINGS, AnnotationFile, all_names, image_of_name, is_readable
from detrkit.data.records import finite_number, usable_size
from detrkit.errors import DataError

WITHOUT_AREA = ("point", "points", "line", "linestrip")
IGNORED = "__ignore__"
"""the label of regions that LabelMe's own converters leave out"""
LOOKED_AT = 20  # files of a folder, before it is none of LabelMe's

Corners = tuple[float, float, float, float]


def find_labelme(root: Path) -> Path | None:
    """The folder with a set's JSON files, some of them perhaps in folders of a split: the root, or one in it."""
    for folder in (root, *(root / name for name in ("annotations", "Annotations", "labels", "labelme"))):
        if any(is_readable(folder / f"{name}.json", read_json) for name in all_names(folder, "json")[:LOOKED_AT]):
            return folder
    return None


def read_json(path: Path) -> AnnotationFile:
    """Read one file. Raises ``DataError`` where it is none of LabelMe's.

    Boxes are around shapes; shapes of one label and `group_id` are one object, as in LabelMe's own converters.
    """
    try:
        content = json.loads(path.read_text(encoding=TEXT))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(f'{path}: is not a LabelMe annotation ("shapes" is missing, a list)')
    size = usable_size(finite_number(content.get("imageHeight")), finite_number(content.get("imageWidth")))
    image = content.get("imagePath")
    parts: list[tuple[str, Corners, bool]] = []
    groups: dict[tuple[str, Any], int] = {}
    faults: list[tuple[str, bool]] = []
    for place, shape in enumerate(content["shapes"], start=1):
        try:
            label, corners = _object(shape)
        except _NoObject as error:
            faults.append((f"{path}: shape {place} {error}: left out", error.loses))
            continue
        group = (label, shape.get("group_id"))
        difficult = shape.get("difficult") is True
        if group[1] is not None and isinstance(group[1], int | str):  # one object in several pieces
            if group in groups:
                before = parts[groups[group]]
                parts[groups[group]] = (label, _around(before[1], corners), before[2] and difficult)
                continue
            groups[group] = len(parts)
        parts.append((label, corners, difficult))
    return AnnotationFile(image if isinstance(image, str) and image else None, size, parts, faults)


class _NoObject(Exception):
    """Why a shape is no object; loses: whether something of the set is left out for it."""

    def __init__(self, why: str, *, loses: bool = True):
        super().__init__(why)
        self.loses = loses


def _object(shape: Any) -> tuple[str, Corners]:
    """The label of a shape and the box around it."""
    if not isinstance(shape, dict):
        raise _NoObject("is no table")
    label, points = shape.get("label"), shape.get("points")
    kind = shape.get("shape_type") or "polygon"  # files of before version 3 have polygons alone
    if not isinstance(label, str) or not label.strip():
        raise _NoObject("has no label")
    if label.strip() == IGNORED:
        raise _NoObject(f'is labelled "{IGNORED}"', loses=False)
    if kind in WITHOUT_AREA:
        raise _NoObject(f'is a {kind}, which has no box ("{label.strip()}")')
    pairs = [_pair(point) for point in points] if isinstance(points, list) else []
    known = [pair for pair in pairs if pair is not None]
    if len(known) < 2 or len(known) != len(pairs):
        raise _NoObject(f'needs two points or more, each of two finite numbers ("{label.strip()}")')
    if kind == "circle":  # its centre, and a point on it
        (x, y), edge = known[0], known[1]
        radius = math.dist((x, y), edge)
        return label.strip(), (x - radius, y - radius, x + radius, y + radius)
    xs, ys = zip(*known, strict=True)
    return label.strip(), (min(xs), min(ys), max(xs), max(ys))


def _around(one: Corners, other: Corners) -> Corners:
    low = (min(one[0], other[0]), min(one[1], other[1]))
    return (*low, max(one[2], other[2]), max(one[3], other[3]))


def _pair(point: Any) -> tuple[float, float] | None:
    if not isinstance(point, list) or len(point) != 2:
        return None
    x, y = finite_number(point[0]), finite_number(point[1])
    return None if x is None or y is None else (x, y)


def image_name(folder: Path, name: str, file: AnnotationFile) -> str:
    """The image's file below the folder: what the annotation says, from its own place on, or of the same name."""
    own = Path(name).parent
    said = (file.image or "").replace("\\", "/")
    if said:
        path = os.path.normpath(os.path.join(own, said))
        if (folder / path).is_file():
            return path
    last = said.rpartition("/")[2]
    return image_of_name(folder, name) or (str(own / last) if last else f"{name}.{ENDINGS[0]}")
