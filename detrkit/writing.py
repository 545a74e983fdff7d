"""Files that are written whole or not at all, and places that are checked before the work that is to fill them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detrkit.errors import UserError


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Where to write what takes `path`'s place when the block ends; after an error all is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it where they are missing."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, with a line break at its end."""
    write_bytes(path, (text if text.endswith("\n") else text + "\n").encode())


def check_folder(path: Path, option: str) -> None:
    """Raise UserError if no files can be written into a folder of that name, which need not be there yet.

    option: what named it, for the message
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path} is a file; it should be a folder, or not be there yet")
    _check_above(path / "a file", path, option)


def check_file(path: Path, option: str) -> None:
    """Raise UserError if no file of that name can be written. option: what named it, for the message."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; it should be a file, or not be there yet")
    _check_above(path, path, option)


def _check_above(file: Path, named: Path, option: str) -> None:
    above = next(folder for folder in file.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{option} {named}: {above} is a file, so there can be nothing below it")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{option} {named}: there is no permission to write into {above}")
