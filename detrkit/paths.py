"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path


def with_home(path: str | Path) -> Path:
    """The path with a home folder in the place of ~ or ~name; as it is where nobody is called so."""
    return Path(os.path.expanduser(path))
