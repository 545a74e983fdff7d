"""The floors of `[tool.importlinter]` hold, and a planted import upwards is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"


@pytest.fixture
def tree(tmp_path):
    """A copy of what the contract looks at."""
    for name in ("detrkit", "cli"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_floors_hold(tree):
    result = lint(tree)
    assert result.returncode == 0, result.stdout
    assert "1 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("detrkit/recipe/options.py", "detrkit.heads"),
        ("detrkit/recipe/registry.py", "detrkit.parts"),
        ("detrkit/decoder.py", "detrkit.sap.terms"),
        ("detrkit/engine/train.py", "detrkit.compare.costs"),
        ("detrkit/engine/meter.py", "cli.app"),
        ("detrkit/compare/costs.py", "detrkit.show.look"),
    ],
)
def test_an_import_upwards_is_found(tree, file, module):
    path = tree / file
    path.write_text(f"{path.read_text()}\n\ndef planted():\n    import {module}\n")
    result = lint(tree)
    importer = file.removesuffix(".py").replace("/", ".")
    assert result.returncode == 1
    assert "0 kept, 1 broken" in result.stdout
    assert f"{importer} -> {module}" in result.stdout


def test_nothing_but_the_command_imports_the_command_line():
    # The contract knows cli/ by its folder; within the installed package it is called detrkit.cli.
    naming = [path for path in (ROOT / "detrkit").rglob("*.py") if "detrkit.cli" in path.read_text()]
    assert [path.name for path in naming] == ["__main__.py"]
