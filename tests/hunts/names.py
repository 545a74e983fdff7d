"""Hostile names and numbers in data sets and folders of images: of classes, of files, of ids, and what is no file."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from PIL import Image

from detrkit.engine.train import train
from detrkit.errors import UserError
from detrkit.recipe import load_recipe

from .hunting import Case, Hunt, verb
from .small_run import SMALL_RUN, make_run

NAMES = {
    "a line break": "line\nbreak",
    "a carriage return": "over\rwritten",
    "10,000 letters": "a" * 10_000,
    "10,000 words": "word " * 2_000,
    "a broken formula": r"$\frac{$",
    "a formula": "$x^2$",
    "half a formula": "5 $",
    "colour": "\x1b[31mred",
    "a terminal's title": "\x1b]0;title\x07",
    "one-byte controls": "\x9b31m\x85\x7f",
    "a zero": "a\0b",
    "nothing": "",
    "a space": " ",
    "markup of rich": "[/bold][link=x]",
    "HTML": "</td><script>alert(1)</script>",
    "a table's bars": "a|b\\|c",
    "CSV": "a,\"b;'c",
    "a formula of a sheet": "=1+1",
    "LaTeX": r"\input{x} a_b^c&d#e~%",
    "half a pair": "\ud800",
    "emoji": "\U0001f600\u200d\U0001f525",
    "combined letters": "e" + "\u0301" * 300,
    "right to left": "\u202eabc\u2066",
    "a line separator": "a\u2028b",
    "a byte order mark": "\ufeffx",
    "no letter": "\uffff\ufffe",
    "Japanese": "名前",
    "a format": "%s%n{0}{x!r}",
    "a path": "../../etc/passwd",
    "a device": "con",
    "a number": "-1",
    "nan": "NaN",
}
IDS = (
    2**31,
    2**53 + 1,
    2**62,
    2**63,
    2**70,
    -1,
    0,
    -(2**63),
    1e300,
    1.5,
    float("nan"),
    "x",
    "1",
    "",
    None,
    True,
    [1],
    {},
)
NUMBERS = (*IDS, float("inf"), -0.0, 1e-320, [[]], "9" * 5000)
PLACES = {  # where numbers stand, as (list, key)
    "category id": ("categories", "id", IDS),
    "image id": ("images", "id", IDS),
    "annotation id": ("annotations", "id", IDS),
    "annotation's image": ("annotations", "image_id", IDS),
    "annotation's category": ("annotations", "category_id", IDS),
    "height": ("images", "height", NUMBERS),
    "width": ("images", "width", NUMBERS),
    "area": ("annotations", "area", NUMBERS),
    "iscrowd": ("annotations", "iscrowd", NUMBERS),
    "box": ("annotations", "bbox", (*NUMBERS, [0, 0, 1], [0, 0, 0, 0], [-5, -5, 1e9, 1e9], [0, 0, float("inf"), 2])),
    "file name": ("images", "file_name", (*IDS, "x" * 300, "/etc/passwd", "../1.png", ".", "a\0b")),
}
FILES = {  # made at a path, in place of an image
    "a pipe": os.mkfifo,
    "a loop of links": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a folder": lambda path: path.mkdir(),
    "a socket": lambda path: _socket(path),
    "an empty file": lambda path: path.touch(),
    "text": lambda path: path.write_text("x"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "half an image": lambda path: path.write_bytes(path.with_name("1.png").read_bytes()[:60]),
    "a file that nobody may read": lambda path: (shutil.copy(path.with_name("1.png"), path), path.chmod(0)),
    "an image of one pixel": lambda path: Image.new("RGB", (1, 1)).save(path),
    "a thin image": lambda path: Image.new("RGB", (4000, 1)).save(path),
    "a bomb": lambda path: path.write_bytes(_bomb()),
}
FILE_NAMES = (
    *(b"photo\xff.png", b"line\nbreak.png", b"\x1b[31mred.png", b"\x9b31m.png", b"a" * 251 + b".png", b"-rf.png"),
    *(b"[bold].png", b"[/x].png", b" .png", b"%s{0}.png", b"$HOME.png", b"~.png", b"#a?b=c&d.png", b"a:b.png"),
    *(
        b"val:1",
        b"1.png.png",
        b"<b>&'\".png",
        "é\u0301名\U0001f600.png".encode(),
        b"a=b.png",
        b"a.PNG",
        b"train.epochs=3",
    ),
)


def cases(place: Path) -> Iterator[Case]:
    whole = make_run(place / "whole")
    for told, name in NAMES.items():
        yield Case(f"a class called {told}", partial(_try_class, name))
        yield Case(f"a run called {told}", partial(_try_run, whole, name))
    for told, (table, key, values) in PLACES.items():
        for value in values:
            shown = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:30]}..."
            yield Case(f"{told} {shown}", partial(_try_value, table, key, value))
            yield Case(f"every {told} {shown}", partial(_try_value, table, key, value, every=True))
    for told, make in FILES.items():
        yield Case(f"{told} to predict", partial(_try_file, whole, make))
        yield Case(f"{told} in a data set", partial(_try_data_file, make))
    for name in FILE_NAMES:
        yield Case(f"a file called {name!r:.60}", partial(_try_file_name, whole, name))
        yield Case(f"a data set's file called {name!r:.60}", partial(_try_data_file_name, name))


def write_set(folder: Path) -> dict:
    """Two images with an object each, in both splits; the content of their annotation file."""
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in (1, 2)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
            for n in (1, 2)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for n in (1, 2):
            Image.new("RGB", (60, 40), (90 * n, 120, 30)).save(folder / split / f"{n}.png")
    write_annotations(folder, content)
    return content


def write_annotations(folder: Path, content: dict) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _train(data: Path, run: Path) -> Path:
    """Two steps on a data set, with pictures."""
    small = [one for one in SMALL_RUN if not one.startswith(("data.", "evaluate."))]
    where = ["data.type=coco", f"data.root={json.dumps(str(data))}", "evaluate.pictures=2", "train.epochs=1"]
    train(load_recipe("quickstart", [*small, *where, "train.batch_size=1", "data.augment.type=none"]), run)
    return run


def _use(data: Path, folder: Path) -> None:
    """What a person does with a data set, from looking at it to the last page; at the first refusal that is it."""
    verb("check-data", data, "--json", folder / "a.json", "--pictures", folder / "pictures")
    run = _train(data, folder / "run")
    verb("evaluate", run)
    verb("predict", run, data / "val", "--out", folder / "drawn", "--threshold", 0, "--points")
    verb("show", run, "val:1", "--threshold", 0)
    verb("report", run, "--threshold", 0)
    verb("compare", run, "--size", "64x64", "--out", folder / "compared")
    for path in (run / "report.html", run / "shown" / "val_1" / "index.html", folder / "compared" / "report.html"):
        assert "<script>alert" not in path.read_text(encoding="utf-8"), f"{path} holds a name as it is"
    for path in (run / "evaluation.json", folder / "drawn" / "images.json", folder / "a.json"):
        json.loads(path.read_text(encoding="utf-8"))


def _try_class(name: str, folder: Path) -> None:
    content = write_set(folder / "data")
    content["categories"][1]["name"] = name
    write_annotations(folder / "data", content)
    _use(folder / "data", folder)


def _try_run(whole: Path, name: str, folder: Path) -> None:
    """A folder and a title of that name."""
    run = folder / name.replace("/", "")
    try:
        shutil.copytree(whole, run)
    except (OSError, ValueError):  # no file can be called that
        run = shutil.copytree(whole, folder / "run")
    verb("evaluate", run, f"title={json.dumps(name)}")
    verb("report", run, f"title={json.dumps(name)}")
    verb("show", run, "val:1")
    verb("compare", run, "--size", "64x64", "--out", folder / "compared")
    verb("inspect", run, f"title={json.dumps(name)}")


def _try_value(table: str, key: str, value: object, folder: Path, *, every: bool = False) -> None:
    content = write_set(folder / "data")
    for row in content[table][0 if every else 1 :]:
        row[key] = value
    write_annotations(folder / "data", content)
    with suppress(UserError):
        verb("check-data", folder / "data", "--json", folder / "a.json", "--pictures", folder / "pictures")
    run = _train(folder / "data", folder / "run")
    verb("evaluate", run)
    verb("report", run)


def _try_file(whole: Path, make: Callable[[Path], object], folder: Path) -> None:
    photos = folder / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 48), "orange").save(photos / "1.png")
    make(photos / "2.png")
    verb("predict", whole, photos, "--out", folder / "drawn")
    assert len(json.loads((folder / "drawn" / "images.json").read_text())["images"]) >= 1, "the good image is lost"
    with suppress(UserError):
        verb("show", whole, photos / "2.png", "--out", folder / "shown")
    verb("predict", whole, photos / "2.png", "--out", folder / "drawn")


def _try_data_file(make: Callable[[Path], object], folder: Path) -> None:
    write_set(folder / "data")
    for split in ("train", "val"):
        (folder / "data" / split / "2.png").unlink()
        make(folder / "data" / split / "2.png")
    with suppress(UserError):
        verb("check-data", folder / "data", "--pictures", folder / "pictures")
    _train(folder / "data", folder / "run")


def _try_file_name(whole: Path, name: bytes, folder: Path) -> None:
    photos = folder / "photos"
    photos.mkdir()
    path = photos / os.fsdecode(name)
    Image.new("RGB", (64, 48), "orange").save(photos / "1.png")
    shutil.copy(photos / "1.png", path)
    verb("predict", whole, path, photos, "--out", folder / "drawn", "--threshold", 0)
    assert len(json.loads((folder / "drawn" / "images.json").read_text())["images"]) == 2
    verb("show", whole, path, "--out", folder / "shown")


def _try_data_file_name(name: bytes, folder: Path) -> None:
    data = folder / "data"
    content = write_set(data)
    content["images"][1]["file_name"] = os.fsdecode(name)
    for split in ("train", "val"):
        (data / split / "2.png").rename(data / split / os.fsdecode(name))
    write_annotations(data, content)
    _use(data, folder)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's whole path has 100 letters at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def _bomb() -> bytes:
    """A PNG that says that it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


HUNT = Hunt("names", "names tried", cases)
