"""The recipes that come with detrkit, known by name wherever it is installed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RecipeEntry:
    """A shipped recipe. reproduces: the published row that it is meant to reach, empty if there is none."""

    name: str
    title: str
    description: str
    reproduces: Mapping[str, Any]
    path: Path


def shipped_folder() -> Path:
    """The folder of the shipped recipes."""
    return Path(str(files("detrkit.recipes")))


def shipped_names() -> list[str]:
    """The names of all shipped recipes, bases included: paths below the folder without ".toml"."""
    folder = shipped_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))


def find_shipped(name: str) -> Path | None:
    """The file of a shipped recipe, None if there is none of that name."""
    return shipped_folder() / f"{name}.toml" if name in shipped_names() else None


def list_recipes() -> list[RecipeEntry]:
    """The shipped recipes that are meant to be run, by name; those below base/ are only to be extended."""
    return [_entry(name) for name in shipped_names() if not name.startswith("base/")]


def recipe_name(path: Path) -> str:
    """A recipe's name: the shipped name of a shipped file, otherwise the file's name without ".toml"."""
    folder, path = shipped_folder().resolve(), path.resolve()
    return path.relative_to(folder).with_suffix("").as_posix() if path.is_relative_to(folder) else path.stem


def display_name(path: Path) -> str:
    """How a recipe file is named in messages: short, and the same wherever detrkit is installed."""
    path = path.resolve()
    if path.is_relative_to(shipped_folder().resolve()):
        return f"recipes/{recipe_name(path)}.toml"
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _entry(name: str) -> RecipeEntry:
    path = shipped_folder() / f"{name}.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    return RecipeEntry(name, values.get("title", ""), values.get("description", ""), values.get("reproduces", {}), path)
