"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path

from detrkit.errors import UserError
from detrkit.writing import explain


def with_home(path: str | Path) -> Path:
    """The path with a home folder in the place of ~ or ~name; as it is where nobody is called so.

    Raises UserError for "", a shell's variable without a value, which Python takes for the folder that it runs in; and
    where the system will not look whether there is such a path, as its name is too long, say.
    """
    if path == "":
        raise UserError("a path is empty; . is the folder that you are in")
    found = Path(os.path.expanduser(path))
    try:
        found.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
    except OSError as error:
        raise UserError(explain(error)) from error
    return found
