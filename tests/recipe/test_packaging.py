"""What `pyproject.toml` packs is what is there, so that an installed detrkit lacks nothing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from detrkit.recipe.library import find_recipe, list_recipes, recipe_names
from detrkit.recipe.plugins import recipe_folders

ROOT = Path(__file__).parents[2]


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    below = [path.parent.relative_to(ROOT) for path in (ROOT / "detrkit").rglob("__init__.py")]
    there = {".".join(path.parts) for path in below} | {"detrkit.cli", "detrkit.recipes"}
    assert set(listed) == there


def test_every_recipe_file_is_known_by_name():
    assert next((f.package, f.path.resolve()) for f in recipe_folders()) == ("detrkit", ROOT / "recipes")
    files = {path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in ROOT.glob("recipes/**/*.toml")}
    assert set(recipe_names()) == files


def test_a_recipe_is_found_where_the_list_has_it():
    assert all(find_recipe(entry.name) == entry.path for entry in list_recipes())
    assert all(find_recipe(name) for name in recipe_names())


@pytest.mark.parametrize(
    "text", ["", ".", "..", "/", "base", "base/", "./base/dino", "base//dino", "base/../base/dino", "base/dino.toml"]
)
def test_another_way_to_write_a_path_is_no_name(text):
    assert find_recipe(text) is None
    assert find_recipe(str(ROOT / "recipes/base/dino")) is None


def test_every_module_with_a_part_is_imported_for_its_own_sake():
    """Not by the way of another: what imports less one day would take the part out of every recipe's reach."""
    listed = set(re.findall(r"^import ([\w.]+)", (ROOT / "detrkit/parts.py").read_text(), re.MULTILINE))
    files = [
        path for path in (ROOT / "detrkit").rglob("*.py") if re.search(r"^@register\(", path.read_text(), re.MULTILINE)
    ]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert "detrkit.detector" in modules
    assert {name for name in modules if not {name, name.rpartition(".")[0]} & listed} == set()
