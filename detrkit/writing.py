"""Files that are written whole or not at all, and places that are checked before the work that is to fill them."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from detrkit.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# What to do, by what the system says. Anything else is told in its own words.
ADVICE = {
    "ENOSPC": "The disk is full: make room there",
    "EDQUOT": "Your share of the disk is used up: make room there",
    "EROFS": "It lies on a disk that is read-only: choose another place",
    "EACCES": "There is no permission: change that, or choose another place",
    "EPERM": "There is no permission: change that, or choose another place",
    "ENAMETOOLONG": "The name is longer than the file system takes: choose a shorter one",
    "ELOOP": "Its links go in a circle",
    "EMFILE": "Too many files are open at once: raise the limit (ulimit -n), or take fewer workers",
    "EISDIR": "There is a folder of that name in the way",
    "ENOTDIR": "There is a file in the way where a folder is needed",
    "EEXIST": "There is a file in the way where a folder is needed",
}
# Of what is written here; folders may have dots in their names otherwise.
FILE_ENDINGS = (".html", ".htm", ".json", ".csv", ".md", ".tex", ".jpg", ".jpeg", ".png", ".mp4")


def explain(error: OSError) -> str:
    """What the system refused, where, and what may help, in a line or two."""
    places = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, Path))]
    where = " and ".join(dict.fromkeys(places)) or "a file or connection"
    advice = ADVICE.get(errno.errorcode.get(error.errno or 0, ""))
    return f"{where}: {error.strerror or error}" + (f". {advice}" if advice else "")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the block that name no file, as those of a full disk, or a temporary one of this, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(f".{path.name}."):
            error.filename = str(path)
        raise


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Where to write what takes `path`'s place when the block ends; after an error all is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            yield temporary
            bring_to_disk(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def bring_to_disk(path: Path) -> None:
    """Wait until a file's content would outlast a power cut, as it must before it takes another's place."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class _Patient(io.BufferedWriter):
    """Takes all that is written, and keeps the first error."""

    failed: OSError | None = None

    def write(self, data: Buffer) -> int:
        if self.failed is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = error
        return memoryview(data).nbytes


@contextmanager
def patient_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file whose first error is raised when the block ends.

    For torch's writer of archives: where a write fails in its middle, it tries again as it goes, and ends the process.
    """
    with naming(path), _Patient(io.FileIO(path, "wb")) as file:
        yield file
        if file.failed is not None:
            raise file.failed


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it where they are missing."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, with a line break at its end.

    Names of files that are no UTF-8 hold letters that it does not have: they are written as JSON has them, \\udcff.
    """
    write_bytes(path, (text if text.endswith("\n") else text + "\n").encode(errors="backslashreplace"))


def check_folder(path: Path, option: str) -> None:
    """Raise UserError if no files can be written into a folder that a person has named, which need not be there yet.

    So it is where the name is a file's, as drawn.jpg or page.html: a single file is what is wanted then.

    option: what named it, for the message
    """
    if path.suffix.lower() in FILE_ENDINGS and not path.exists():
        raise UserError(f"{option} {path}: several files are written, into a folder, and this is the name of one file")
    check_place(path, option)


def check_place(path: Path, option: str) -> None:
    """Raise UserError if no files can be written into a folder, whatever it is called. option: as of `check_folder`."""
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
