"""Looking up the files that annotations name: each folder is listed once, however many images it holds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

TEXT = "utf-8-sig"
"""the encoding of lists and labels: UTF-8, at whose beginning some programs of Windows put a mark"""


@dataclass(frozen=True)
class FoundFiles:
    """Where the named files are.

    names: relative to the folder, as found, or as written where there is no such file; missing: the indices of those;
    ways: how many were found otherwise than as they are written, by the way in words, each with an example.
    """

    names: list[str]
    missing: list[int]
    ways: dict[str, tuple[int, str]]


@dataclass
class Listing:
    """What lies below a folder, read folder by folder when it is first asked for."""

    root: Path
    known: dict[str, frozenset[str]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether there is an entry of that name, relative to the root with "/" between folders."""
        if "\0" in name:
            return False
        last = name.rpartition("/")[2]
        parent = name.removesuffix(last)  # with its "/", without which a name from the root would be one of the folder
        if parent not in self.known:
            try:
                self.known[parent] = frozenset(os.listdir(self.root / parent))
            except OSError:  # no such folder, or a name that none can have
                self.known[parent] = frozenset()
        return bool(last) and last in self.known[parent]


def find_files(folder: Path, written: Sequence[str]) -> FoundFiles:
    """Finds files below a folder by their names as written, else in the ways that exporters write them.

    A file that several names lead to by their last part alone is none of theirs.
    """
    listing = Listing(folder)
    names, missing = [], []
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    found_by = [
        next(((way, found) for way, change in WAYS.items() if listing.has(found := change(name, folder))), ("", name))
        for name in written
    ]
    meant: dict[str, set[str]] = {found: set() for way, found in found_by if way == LAST_PART}
    for (_, found), name in zip(found_by, written, strict=True):
        if found in meant:
            meant[found].add(name)
    for index, ((way, found), name) in enumerate(zip(found_by, written, strict=True)):
        if way == LAST_PART and len(meant[found]) > 1:
            way, found = "", name
        if not way:
            missing.append(index)
        elif way != AS_WRITTEN:
            counts[way] += 1
            examples.setdefault(way, name)
        names.append(found)
    return FoundFiles(names, missing, {way: (count, examples[way]) for way, count in counts.items()})


def walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, also those that links lead to; each folder is entered once, by its own name first."""
    waiting, seen = [folder], set[Path]()
    while waiting:
        for at, folders, files in os.walk(waiting.pop(0)):
            if (real := Path(at).resolve()) in seen:  # a link led back to it
                folders.clear()
                continue
            seen.add(real)
            waiting += [Path(at, name) for name in sorted(folders) if os.path.islink(os.path.join(at, name))]
            yield from (Path(at, name) for name in files)


def _as_bytes(name: str, folder: Path) -> str:
    """As Python has the name of a file where the system's encoding is ASCII: each byte that it does not know apart."""
    return os.fsdecode(name.encode(errors="surrogatepass"))


def _slashed(name: str, folder: Path) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _decoded(name: str, folder: Path) -> str:
    return unquote(_slashed(name, folder))


def _below(name: str, folder: Path) -> str:
    """Without all up to the folder's own name: train/a.jpg in train/, or images/train/a.jpg."""
    parts = _decoded(name, folder).split("/")
    return "/".join(parts[parts.index(folder.name) + 1 :]) if folder.name in parts[:-1] else name


def _last(name: str, folder: Path) -> str:
    return _decoded(name, folder).rpartition("/")[2]


AS_WRITTEN, LAST_PART = "as written", "by the last part of their names"
WAYS: dict[str, Callable[[str, Path], str]] = {
    AS_WRITTEN: lambda name, folder: name,
    "byte by byte, as this system's encoding is ASCII (LC_ALL=C.UTF-8 sets another)": _as_bytes,
    "with / in the place of \\": _slashed,
    "with %20 and the like decoded": _decoded,
    "with accents apart from their letters (Unicode's NFD, macOS)": lambda name, folder: normalize("NFD", name),
    "with accents and letters as one (Unicode's NFC)": lambda name, folder: normalize("NFC", name),
    "without the folder's own name in front": _below,
    LAST_PART: _last,
}
