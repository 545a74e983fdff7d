"""Packages that bring parts and recipes, found by their entry points; detrkit's own are found in the same way.

A package says in its `pyproject.toml`

    [project.entry-points."detrkit.parts"]
    anything = "my_package.parts"      # a module that registers its parts when it is imported

    [project.entry-points."detrkit.recipes"]
    anything = "my_package.recipes"    # a package, as a folder with .toml files in it
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from detrkit.errors import UserError

OWN = "detrkit"
PARTS, RECIPES = "detrkit.parts", "detrkit.recipes"


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that cannot be used. value: the module it names; cause: what went wrong, in one line."""

    package: str
    group: str
    value: str
    cause: str

    def __str__(self) -> str:
        kind = self.group.rpartition(".")[2]
        return f"the {kind} of package {self.package} ({self.value}) cannot be loaded: {self.cause}"


@dataclass(frozen=True)
class RecipeFolder:
    """A folder of recipes, and the package that brings it."""

    package: str
    path: Path


def load_parts() -> list[BrokenPlugin]:
    """Imports the modules that register parts, detrkit's own first, and says which of the others are broken.

    Raises UserError if detrkit's own are not to be found, which means that it is not installed.
    """
    broken = []
    for package, point in _points(PARTS):
        try:
            importlib.import_module(point.value)
        except Exception as error:  # whatever a stranger's module raises must not stop the rest
            if package == OWN:
                raise
            broken.append(BrokenPlugin(package, PARTS, point.value, _cause(error)))
    for one in broken:
        warnings.warn(f"{one}; its parts are not known", stacklevel=2)
    return broken


def others_bring_parts() -> bool:
    """Whether any package but detrkit brings parts; told without importing one."""
    return any(package != OWN for package, _ in _points(PARTS))


def recipe_folders() -> list[RecipeFolder]:
    """The folders of recipes, detrkit's own first. Raises UserError if that is not to be found."""
    return _recipe_folders()[0]


def broken_recipe_folders() -> list[BrokenPlugin]:
    """The entry points for recipes that name no folder."""
    return _recipe_folders()[1]


@cache
def _recipe_folders() -> tuple[list[RecipeFolder], list[BrokenPlugin]]:
    found, broken = [], []
    for package, point in _points(RECIPES):
        try:
            spec = find_spec(point.value)
            places = list(spec.submodule_search_locations or ()) if spec else []
            if not places:
                raise ImportError(f"there is no package {point.value} that could be a folder of recipes")
            found += [RecipeFolder(package, Path(place)) for place in places]
        except Exception as error:  # the packages around it are imported to find it
            if package == OWN:
                raise
            broken.append(BrokenPlugin(package, RECIPES, point.value, _cause(error)))
    return found, broken


def _points(group: str) -> Iterator[tuple[str, EntryPoint]]:
    """The entry points of a group with their packages' names: detrkit's own, then the others by name."""
    named = [(point.dist.name if point.dist else point.name, point) for point in entry_points(group=group)]
    if not any(package == OWN for package, _ in named):
        raise UserError(
            f'the installed detrkit declares no entry point "{group}": it is older than this code, or only on the '
            "path; install it again, in its folder: pip install -e ."
        )
    yield from sorted(named, key=lambda one: (one[0] != OWN, one[0], one[1].name))


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
