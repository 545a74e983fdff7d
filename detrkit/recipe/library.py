"""The recipes that are known by name: those that come with detrkit, and those of installed packages."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detrkit.recipe.plugins import OWN, RECIPES, BrokenPlugin, RecipeFolder, broken_recipe_folders, recipe_folders


@dataclass(frozen=True)
class RecipeEntry:
    """A recipe that is known by name.

    reproduces: the published row that it is meant to reach, empty if there is none; package: who brings it.
    """

    name: str
    title: str
    description: str
    reproduces: Mapping[str, Any]
    path: Path
    package: str = OWN

    @property
    def folder(self) -> str:
        """The folder part of the name, "" if there is none."""
        return self.name.rpartition("/")[0]


def recipe_names() -> list[str]:
    """All names, bases included: paths below a folder of recipes, without ".toml"."""
    return sorted(_files())


def find_recipe(name: str) -> Path | None:
    """The file of the recipe with that name, None if there is none."""
    # Asked for every base of a recipe, so it looks where the file should be and lists no folder.
    if not name or PurePosixPath(name).as_posix() != name or {"..", "/"} & set(PurePosixPath(name).parts):
        return None  # another way to write a path is no name
    files = (folder.path / f"{name}.toml" for folder in recipe_folders())
    return next((path for path in files if os.path.isfile(path)), None)  # also where a name is too long for a file


def list_recipes() -> list[RecipeEntry]:
    """The known recipes that are meant to be run, by name; those below base/ are only to be extended."""
    entries = []
    for name, (package, path) in sorted(_files().items()):
        if name.startswith("base/"):
            continue
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
            if package == OWN:
                raise
            continue  # `broken_recipes` names it
        texts = values.get("title", ""), values.get("description", ""), values.get("reproduces", {})
        entries.append(RecipeEntry(name, *texts, path, package))
    return entries


def broken_recipes() -> list[BrokenPlugin]:
    """What packages bring as recipes and cannot be used: no folder, no TOML, or a name that is taken already."""
    broken, known = broken_recipe_folders(), _files()
    for folder, name, path in _all_files():
        if known[name][1] != path:
            cause = f"package {known[name][0]} has a recipe of that name, which is the one that is found"
            broken = [*broken, BrokenPlugin(folder.package, RECIPES, name, cause)]
            continue
        try:
            tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            broken = [*broken, BrokenPlugin(folder.package, RECIPES, name, f"{type(error).__name__}: {error}")]
    return broken


def recipe_name(path: Path) -> str:
    """A recipe's name: what it is known by, otherwise the file's name without ".toml".

    A project's recipe is called recipe.toml, and so is a run's: that one has its folder's name.
    """
    if found := _place(path):
        return found[1]
    path = path.resolve()
    return path.parent.name if path.name == "recipe.toml" else path.stem


def is_known(path: Path) -> bool:
    """Whether a file came with an installed package."""
    return _place(path) is not None


def display_name(path: Path) -> str:
    """How a recipe file is named in messages: short, and the same wherever its package is installed."""
    found, path = _place(path), path.resolve()
    if found:
        package, name = found
        return f"recipes/{name}.toml" if package == OWN else f"{package}: {name}.toml"
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _all_files() -> Iterator[tuple[RecipeFolder, str, Path]]:
    for folder in recipe_folders():
        for path in sorted(folder.path.rglob("*.toml")):
            yield folder, path.relative_to(folder.path).with_suffix("").as_posix(), path


def _files() -> dict[str, tuple[str, Path]]:
    """Package and file of each name; where two packages have a name, the first one's."""
    found: dict[str, tuple[str, Path]] = {}
    for folder, name, path in _all_files():
        found.setdefault(name, (folder.package, path))
    return found


def _place(path: Path) -> tuple[str, str] | None:
    """Package and name of a file in one of the folders of recipes."""
    path = path.resolve()
    for folder in recipe_folders():
        if path.is_relative_to(folder.path.resolve()):
            return folder.package, path.relative_to(folder.path.resolve()).with_suffix("").as_posix()
    return None
