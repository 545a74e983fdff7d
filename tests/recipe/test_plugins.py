"""Parts and recipes of other installed packages: small real packages, built and installed for the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.0"

[project.entry-points."detrkit.parts"]
{module} = "{module}.parts"

[project.entry-points."detrkit.recipes"]
{module} = "{module}.recipes"

[tool.setuptools]
packages = ["{module}", "{module}.recipes"]

[tool.setuptools.package-data]
"{module}.recipes" = ["**/*.toml"]
"""

COST = """
from detrkit import register
from detrkit.matching.costs import Cost, pairs

@register("cost", "area")
class AreaCost(Cost):
    def __init__(self, *, weight: float = 1.0):
        self.weight = weight

    def __call__(self, output, targets):
        predicted, true = pairs(output.boxes, targets.boxes)
        return (predicted[..., 2:].prod(-1) - true[..., 2:].prod(-1)).abs()
"""

RECIPES = {
    "area/small.toml": 'extends = "quickstart"\ntitle = "Areas count"\nmatcher.costs.area = { weight = 5.0 }\n',
    "quickstart.toml": 'title = "A name that is taken"\n',
    "odd.toml": "title = \n",
}


def install(folder: Path, name: str, *, parts: str, recipes: dict[str, str]) -> None:
    """Writes a package, builds it, and installs it below folder/site, asking no network."""
    module = name.replace("-", "_")
    source = folder / name
    (source / module / "recipes").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT.format(name=name, module=module))
    (source / module / "__init__.py").touch()
    (source / module / "recipes" / "__init__.py").touch()
    (source / module / "parts.py").write_text(parts)
    for path, text in recipes.items():
        file = source / module / "recipes" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    command = ["pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([sys.executable, "-m", *command, folder / "site", source], check=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    install(folder, "detrkit-areas", parts=COST, recipes=RECIPES)
    install(folder, "detrkit-broken", parts="import a_module_that_nobody_has\n", recipes={"fine.toml": 'title = "F"\n'})
    return folder / "site"


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)


def test_the_list_names_packages_and_what_is_broken_with_its_cause(site):
    done = run(site, "-m", "detrkit", "recipes")
    assert done.returncode == 0, done.stderr
    assert "area (package detrkit-areas)" in done.stdout
    assert "Areas count" in done.stdout
    assert "fine" in done.stdout
    assert "A name that is taken" not in done.stdout
    assert (
        "the parts of package detrkit-broken (detrkit_broken.parts) cannot be loaded: "
        "ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in done.stdout
    )
    assert "the recipes of package detrkit-areas (quickstart) cannot be loaded: package detrkit has" in done.stdout
    assert "the recipes of package detrkit-areas (odd) cannot be loaded: TOMLDecodeError" in done.stdout


def test_parts_and_recipes_are_used_as_detrkit_s_own(site):
    code = """
import warnings, detrkit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    recipe = detrkit.load_recipe("area/small")
print([str(w.message) for w in caught if "detrkit-broken" in str(w.message)])
print(recipe.name, recipe.source("matcher.costs.area.weight"), detrkit.build_criterion(recipe).matcher.costs["area"])
"""
    done = run(site, "-c", code)
    assert done.returncode == 0, done.stderr
    warned, used = done.stdout.splitlines()
    assert "its parts are not known" in warned
    assert used.startswith("area/small detrkit-areas: area/small.toml:3 <detrkit_areas.parts.AreaCost object")


def test_a_broken_package_stops_nobody(site):
    done = run(site, "-m", "detrkit", "inspect", "quickstart")
    assert done.returncode == 0, done.stderr
    assert "detrkit-broken" in done.stderr
