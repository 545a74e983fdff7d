"""Fills disks and shuts them: each verb writes where files stop growing, or where a call on a file is refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from detrkit.engine.train import train
from detrkit.errors import UserError
from detrkit.recipe import load_recipe
from detrkit.runs.checkpoint import find_folder, read_state
from detrkit.runs.history import read_metrics

from .calls import watch_calls
from .hunting import REFUSED, WENT_ON, Case, Hunt, in_a_child, verb
from .small_run import SMALL_RUN, make_run

SIZES = (0, 200, 2000, 12_000, 60_000, 200_000)  # bytes that a file may have
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)
TRAIN = (*SMALL_RUN, "evaluate.pictures=1", "train.checkpoint_steps=1")

# By name, given a run and a folder for what is written elsewhere.
VERBS: dict[str, Callable[[Path, Path], object]] = {
    "train": lambda run, out: verb("train", "quickstart", *TRAIN, "--run-dir", out / "trained"),
    "train --resume": lambda run, out: verb("train", "--resume", run, "train.epochs=3"),
    "evaluate": lambda run, out: verb("evaluate", run),
    "predict": lambda run, out: verb("predict", run, run / "photos", "--out", out / "drawn", "--threshold", 0),
    "show": lambda run, out: verb("show", run, "val:1"),
    "report": lambda run, out: verb("report", run),
    "compare": lambda run, out: verb("compare", run, "--size", "64x64", "--out", out / "compared"),
    "export": lambda run, out: verb("export", run, "--out", out / "a.pt2"),
    "check-data": lambda run, out: verb(
        *("check-data", "quickstart", "data.train_images=8", "data.val_images=2", "data.image_size=64"),
        *("--json", out / "a.json", "--pictures", out / "pictures"),
    ),
}


@dataclass
class Disk:
    """A disk that is full, or read-only, while a verb runs, and not any more afterwards.

    bytes: that a file may have. call: the one that is refused, counted from 1, and all after it; number: with what.
    """

    bytes: int | None = None
    call: int | None = None
    number: int = errno.ENOSPC
    is_shut: bool = field(default=True, init=False)

    def shut(self, below: Path) -> None:
        if self.bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))
        if self.call is not None:
            watch_calls(below, self._refuse, only_writes=True)

    def _refuse(self, number: int, path: str) -> None:
        if self.is_shut and self.call is not None and number >= self.call:
            raise OSError(self.number, os.strerror(self.number), path)

    def open(self) -> None:
        self.is_shut = False
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def cases(place: Path, verbs: Sequence[str] = tuple(VERBS)) -> Iterator[Case]:
    """Every size of files, and every call that a verb makes to write, of the verbs named."""
    whole = make_run(place / "whole", "evaluate.pictures=1")
    verb("evaluate", whole)
    (whole / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (64, 48), "orange").save(whole / "photos" / name)
    for name in verbs:
        for size in SIZES:
            yield Case(f"{name}: files of {size} bytes", partial(_try, name, Disk(bytes=size), whole))
        folder = place / "count"
        calls = in_a_child(partial(_count, name, whole, folder))
        shutil.rmtree(folder)
        for call in range(1, calls + 1):
            number = ERRORS[call % len(ERRORS)]
            told = f"{name}: {errno.errorcode[number]} from call {call} on"
            yield Case(told, partial(_try, name, Disk(call=call, number=number), whole))


def _count(name: str, whole: Path, folder: Path) -> int:
    calls = [0]
    run, out = _places(whole, folder)
    watch_calls(folder, lambda number, _: calls.__setitem__(0, number), only_writes=True)
    VERBS[name](run, out)
    return calls[0]


def _places(whole: Path, folder: Path) -> tuple[Path, Path]:
    run, out = shutil.copytree(whole, folder / "run"), folder / "out"
    out.mkdir()
    return run, out


def _try(name: str, disk: Disk, whole: Path, folder: Path) -> str:
    run, out = _places(whole, folder)
    disk.shut(folder)
    told = ""
    try:
        VERBS[name](run, out)
    except UserError as error:
        told = str(error)
    disk.open()
    if told:
        assert str(folder) in told.replace("\n", ""), f"names no place: {told}"
        if name == "train" and find_folder(out / "trained" / "last"):
            assert f"train --resume {out / 'trained'}" in told.replace("\n", " "), f"says no way to go on: {told}"
    _require_whole(folder)
    for one in (run, out / "trained"):
        if "train" in name and (one / "recipe.toml").exists():
            train(load_recipe(one), one, resume=True)
            assert find_folder(one / "last") is not None
            assert not list(one.glob(".last.*")), "a resume leaves what a checkpoint left that could not be written"
    return REFUSED if told else WENT_ON


def _require_whole(folder: Path) -> None:
    """Nothing is half: each file is as it was, whole and new, or not there, and nothing temporary is left."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix in (".png", ".jpg"):
            Image.open(path).load()
        # Where nothing can be removed either, a checkpoint that was begun stays until the next resume.
        assert not path.name.endswith(".tmp") or path.is_dir() or "trained" in str(path), f"left over: {path}"
        if path.name == "metrics.jsonl":
            with suppress(UserError):  # a last line that was cut, which a resume takes away
                read_metrics(path.parent)
        if path.name in ("last", "best") and find_folder(path) is not None:
            read_state(path)


HUNT = Hunt("disks", "disks filled", cases)
