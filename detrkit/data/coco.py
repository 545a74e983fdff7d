"""Reading annotation files in COCO format, whatever state they are in."""

from __future__ import annotations

import json
import mmap
import re
from codecs import BOM_UTF8
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from detrkit.data.decode import Exif, stored_size
from detrkit.data.files import find_files
from detrkit.data.masks import box_of_mask
from detrkit.data.records import FEWEST_TO_TELL, Category, Fault, Records, check_boxes, finite_number, usable_size
from detrkit.errors import DataError

_PIECE = 4_000_000  # bytes at the start and at the end of a file, where its categories are looked for


def read_categories(path: Path) -> tuple[Category, ...]:
    """The categories of an annotation file, sorted by id.

    Of COCO's 450 MB training file only the end is parsed (0.2 s); of a file that begins
    with its categories, only the start. Any other file is parsed whole.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_PIECE).decode("utf-8", "ignore")  # the piece may end inside a letter
            file.seek(max(0, path.stat().st_size - _PIECE))
            end = file.read().decode("utf-8", "ignore")
        entries = _last_member(end, "categories")
        return _categories(path, {"categories": _first_member(start, "categories") if entries is None else entries})[0]
    except (OSError, ValueError, RecursionError, DataError):
        return _categories(path, _parse(path))[0]  # an unusual file: parse it whole, with its errors named


def first_file_names(path: Path, count: int = 50) -> list[str]:
    """Some of the images' file names in an annotation file, without parsing a large one whole.

    They serve to recognise a folder: among them may be names that stand elsewhere than in ``images``.
    Raises ``DataError`` where the file is no annotation file, or names no image.
    """
    found: list[bytes] = []
    if path.stat().st_size:  # an empty file cannot be mapped
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            matches = islice(re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', text), count)
            found = [match[1] for match in matches]
    with suppress(ValueError):  # no JSON: parsed whole, it is named with its line
        if names := [json.loads(name.decode("utf-8", "replace"), strict=False) for name in found]:
            return names
    data = _parse(path)
    _categories(path, data)
    return [row[3] for row in _images(path, data, path.parent, "upright")[0][:count]]


def _last_member(text: str, key: str) -> Any:
    """The last value of a JSON object under ``key``, from the end of its text; None where it has another key.

    Inside a string quotes are escaped, so a bare ``"key":`` is a key; and where nothing but the closing
    brace of the whole file follows its value, it is a key of the outermost object.
    """
    for match in reversed(list(re.finditer(rf'(?<!\\)"{key}"\s*:\s*', text))):
        try:
            value, after = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:
            continue
        if re.fullmatch(r"\s*\}\s*", text[after : after + 100]) and not text[after + 100 :].strip():
            return value
    return None


def _first_member(text: str, key: str) -> Any:
    """The value of a JSON object under ``key``, from the start of its text; ``ValueError`` where it ends before."""
    decoder, position, name = json.JSONDecoder(), 0, None
    while name != key:
        mark = re.compile(r"\s*[{,]\s*").match(text, position)
        colon = mark and re.compile(r'"[^"\\]*"\s*:\s*').match(text, mark.end())
        if not (mark and colon):
            raise ValueError(f"no {key} at the start")
        name = decoder.raw_decode(text, mark.end())[0]
        value, position = decoder.raw_decode(text, colon.end())
    return value


def is_coco(path: Path) -> bool:
    """Whether a JSON file looks like COCO annotations, by its first and last pieces."""
    try:
        with path.open("rb") as file:
            start = file.read(_PIECE)
            file.seek(max(0, path.stat().st_size - _PIECE))
            text = start + file.read()
    except OSError:
        return False
    return start.removeprefix(BOM_UTF8).lstrip()[:1] == b"{" and all(
        f'"{key}"'.encode() in text for key in ("images", "annotations")
    )


def read_coco(path: Path, images: Path, *, exif: Exif = "upright") -> tuple[tuple[Category, ...], Records, list[Fault]]:
    """Read an annotation file: its categories by id, its records, and the faults found on the way.

    Annotations that cannot be used (no area, wholly outside, unknown image or category, a second one of
    the same id) are left out, each with a fault; boxes that pass the edge stay as they are, with a fault,
    and are clipped when training. Images without boxes are kept. ``images`` is the folder of the images,
    looked into only for images whose size the file does not give (see ``decode`` for ``exif``). Raises
    ``DataError`` where the file is no annotation file at all.
    """
    data = _parse(path)
    texts = _number_text_ids(path, data)
    categories, faults = _categories(path, data)
    known = {category.id for category in categories}
    image_rows, image_faults = _images(path, data, images, exif)
    faults += image_faults
    index_of = {row[0]: index for index, row in enumerate(image_rows)}
    sizes = np.array([row[1:3] for row in image_rows], dtype=np.int64).reshape(-1, 2)

    rows: list[tuple] = []
    seen: set[int] = set()
    for position, entry in enumerate(_table(path, data, "annotations")):
        row, fault = _annotation(entry, position, index_of, known, seen, sizes)
        faults += [fault] if fault else []
        if row is not None:
            rows.append(row)
            seen.add(row[1])
    # Stable by image, so that the order inside an image is the file's.
    rows.sort(key=lambda row: row[0])

    index = np.array([row[0] for row in rows], dtype=np.int64)
    ids = np.array([row[1] for row in rows], dtype=np.int64)
    boxes = np.array([row[3] for row in rows], dtype=np.float64).reshape(-1, 4)
    keep, box_faults = check_boxes(boxes, sizes[index], ids, [image_rows[i][0] for i in index])
    records = Records(
        image_ids=np.array([row[0] for row in image_rows], dtype=np.int64),
        sizes=sizes,
        file_names=np.array([row[3] for row in image_rows], dtype=np.str_),
        first=np.searchsorted(index[keep], np.arange(len(image_rows) + 1)),
        annotation_ids=ids[keep],
        category_ids=np.array([row[2] for row in rows], dtype=np.int64)[keep],
        boxes=boxes[keep],
        areas=np.array([row[4] for row in rows], dtype=np.float64)[keep],
        crowd=np.array([row[5] for row in rows], dtype=bool)[keep],
        texts=np.array([texts["images"][row[0]] for row in image_rows]) if "images" in texts else None,
    )
    found = _as_corners(boxes, sizes[index]) + faults + box_faults
    return categories, records, [_with_texts(fault, texts) for fault in found]


def _as_corners(boxes: np.ndarray, sizes: np.ndarray) -> list[Fault]:
    """A fault where boxes [A, 4], each in an image of `sizes` [A, 2], are plainly corners and not (x, y, w, h).

    All fit into their images as corners, and many do not otherwise: of real ones, those beyond the middle.
    """
    limit = sizes[:, ::-1]
    over = int((boxes[:, :2] + boxes[:, 2:] > limit + 1).any(1).sum())
    corners = (boxes[:, :2] >= -1).all() and (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= limit + 1).all()
    if len(boxes) < FEWEST_TO_TELL or not corners or over <= 0.3 * len(boxes):
        return []
    detail = f"{over} of the {len(boxes)} boxes pass the edge of their image, and as corners (x1, y1, x2, y2) all "
    return [Fault("box form", None, None, detail + "fit; COCO's are (x, y, width, height)", loses=False)]


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = json.load(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text, so not a COCO annotation file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without end
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or "images" not in data:
        raise DataError(f"{path}: is not a COCO annotation file (a JSON object with images, annotations, categories)")
    return data


def _number_text_ids(path: Path, data: dict[str, Any]) -> dict[str, dict[int, str]]:
    """Puts numbers, counted from 1, in the place of ids that are texts; gives the text of each number, by table.

    Raises ``DataError`` where a table has both kinds of ids.
    """
    texts: dict[str, dict[int, str]] = {}
    for key in ("images", "annotations"):
        entries = _table(path, data, key)
        said = [entry.get("id") for entry in entries]
        named = [identity for identity in said if isinstance(identity, str)]
        if not named:
            continue
        if len(named) < len(said):
            other = next(identity for identity in said if not isinstance(identity, str))
            raise DataError(
                f"{path}: the ids of '{key}' are texts ({named[0]!r}) and others ({_shown(other)}); they must be "
                "all whole numbers or all texts"
            )
        number_of = {text: number for number, text in enumerate(dict.fromkeys(named), start=1)}
        texts[key] = {number: text for text, number in number_of.items()}
        data[key] = [{**entry, "id": number_of[entry["id"]]} for entry in entries]
        if key == "images":
            for position, entry in enumerate(_table(path, data, "annotations")):
                named_by = entry.get("image_id")
                # A number is not the text that it looks like, nor one of those that now stand for texts.
                number = number_of.get(named_by, named_by) if isinstance(named_by, str) else _shown(named_by)
                data["annotations"][position] = {**entry, "image_id": number}
    return texts


def _with_texts(fault: Fault, texts: dict[str, dict[int, str]]) -> Fault:
    """A fault with the ids that the file has."""
    image_id, annotation_id = fault.image_id, fault.annotation_id
    if isinstance(image_id, int):
        image_id = texts.get("images", {}).get(image_id, image_id)
    if isinstance(annotation_id, int):
        annotation_id = texts.get("annotations", {}).get(annotation_id, annotation_id)
    return replace(fault, image_id=image_id, annotation_id=annotation_id)


def _table(path: Path, data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    table = data.get(key, [])
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
        raise DataError(f"{path}: '{key}' must be a list of objects")
    return table


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63  # fits int64


def _categories(path: Path, data: dict[str, Any]) -> tuple[tuple[Category, ...], list[Fault]]:
    found: dict[int, Category] = {}
    faults = []
    for position, entry in enumerate(_table(path, data, "categories")):
        if not _is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            needs = "a whole number 'id' of 64 bits and a 'name'"
            raise DataError(f"{path}: categories[{position}] needs {needs}, but is {_shown(entry)}")
        category = Category(entry["id"], entry["name"])
        first = found.setdefault(category.id, category)
        if first is not category:
            detail = f"category id {category.id} stands twice: {first.name!r} is used, not {category.name!r}"
            faults.append(Fault("duplicate category id", None, None, detail, loses=True))
    if not found:
        raise DataError(f"{path}: has no categories")
    return tuple(sorted(found.values(), key=lambda category: category.id)), faults


def _images(path: Path, data: dict[str, Any], folder: Path, exif: Exif) -> tuple[list[tuple], list[Fault]]:
    """Rows (id, height, width, file name), sorted by id."""
    rows: dict[int, tuple] = {}
    faults = []
    entries = _table(path, data, "images")
    unsized = [name for entry in entries if _size(entry) is None and isinstance(name := entry.get("file_name"), str)]
    places = dict(zip(unsized, find_files(folder, unsized).names, strict=True))
    for position, entry in enumerate(entries):
        image_id, name = entry.get("id"), entry.get("file_name")
        if not _is_id(image_id) or not isinstance(name, str):
            raise DataError(f"{path}: images[{position}] needs a whole number 'id' of 64 bits and a 'file_name'")
        if image_id in rows:
            detail = f"image id stands twice: {rows[image_id][3]} is used, not {name}"
            faults.append(Fault("duplicate image id", image_id, None, detail, loses=True))
            continue
        size = _size(entry)
        if size is None:
            try:
                size = stored_size(folder / places[name], exif=exif)
            except DataError as error:
                detail = f"left out: no usable size in the annotation file, and {error}"
                faults.append(Fault("no image size", image_id, None, detail, loses=True))
                continue
            detail = f"no usable size in the annotation file; {name} is {size[1]} x {size[0]}"
            faults.append(Fault("no image size", image_id, None, detail, loses=False))
        rows[image_id] = (image_id, *size, name)
    if not rows:
        raise DataError(f"{path}: has no usable images")
    return [rows[image_id] for image_id in sorted(rows)], faults


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of an image's entry; None where it gives none that an image can have."""
    return usable_size(finite_number(entry.get("height")), finite_number(entry.get("width")))


def _annotation(
    entry: dict[str, Any], position: int, index_of: dict[int, int], known: set[int], seen: set[int], sizes: np.ndarray
) -> tuple[tuple | None, Fault | None]:
    """One row (image index, id, category id, box, area, crowd), or None where it is left out; and its fault."""
    image_id, category_id, box = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
    annotation_id = entry.get("id", position + 1)

    def left_out(kind: str, detail: str) -> tuple[None, Fault]:
        named = (image_id if _is_id(image_id) else None, annotation_id if _is_id(annotation_id) else None)
        return None, Fault(kind, *named, detail, loses=True)

    if not _is_id(annotation_id):
        return left_out("bad annotation id", f"annotations[{position}] has the id {_shown(annotation_id)}")
    if annotation_id in seen:
        return left_out("duplicate annotation id", "a second annotation of this id is left out")
    if not _is_id(image_id) or image_id not in index_of:
        return left_out("unknown image", f"image id {_shown(image_id)} is not among the images")
    if not _is_id(category_id) or category_id not in known:
        return left_out("unknown category", f"category id {_shown(category_id)} is not among the categories")
    outlined = None
    if box is None and entry.get("segmentation"):
        outlined = box_of_mask(entry["segmentation"], sizes[index_of[image_id]])
        if outlined is None:
            shown = _shown(entry["segmentation"])
            return left_out("bad segmentation", f"no bbox, and the segmentation is no polygons and no RLE: {shown}")
        box = outlined[0]
    sides = [finite_number(side) for side in box] if isinstance(box, list) else []
    numbers = [side for side in sides if side is not None]
    if not len(numbers) == len(sides) == 4:
        return left_out("bad box", f"bbox must be four finite numbers (x, y, w, h), but is {_shown(box)}")
    crowd = entry.get("iscrowd")
    crowd = 0 if crowd is None else crowd  # null is what some exporters write for an empty column
    if not isinstance(crowd, int | float) or crowd not in (0, 1):  # true and false are 1 and 0
        return left_out("bad crowd flag", f"iscrowd must be 0, 1, true, false or null, but is {_shown(crowd)}")
    given = entry.get("area")
    area = finite_number(given)
    fault = None
    if area is None or area < 0:
        area = numbers[2] * numbers[3] if outlined is None else outlined[1]
        if given is not None:
            detail = f"area must be a finite number of at least 0, but is {_shown(given)}: w x h is used"
            fault = Fault("bad area", image_id, annotation_id, detail, loses=False)
    return (index_of[image_id], annotation_id, category_id, numbers, area, bool(crowd)), fault


def _shown(value: Any) -> str:
    """A value of the file for a message, cut where it is long. (Python refuses to write very large numbers.)"""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}..."
