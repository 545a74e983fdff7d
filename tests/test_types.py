"""The type checker finds a planted mistake, so that its silence in CI means something; py.typed ships."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["detrkit/boxes.py", "cli/console.py"])
def test_a_planted_mistake_is_found(tmp_path, file):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("detrkit", "cli"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a") as planted:
        planted.write('\n\ndef planted() -> int:\n    return "a word"\n')
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache"), file]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{file}:" in done.stdout
    assert 'got "str", expected "int"' in done.stdout
    assert "Found 1 error in 1 file" in done.stdout


def test_others_are_told_that_the_package_has_types():
    assert (files("detrkit") / "py.typed").is_file()
