"""What the pages under docs/ say against what the code says."""

import importlib.util
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import detrkit
from detrkit.errors import UserError
from detrkit.recipe import registry

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_systems_is_what_the_script_prints(capsys):
    """After a change of a part: python benchmarks/lines_per_system.py, and its table into docs/systems.md."""
    path = ROOT / "benchmarks" / "lines_per_system.py"
    spec = importlib.util.spec_from_file_location("lines_per_system", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main()
    page = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line.startswith("|")] == capsys.readouterr().out.splitlines()


def snippets(heading):
    """The indented blocks of a part of the README, a comment's blank lines with them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", part, flags=re.MULTILINE)
    return [textwrap.dedent(block).strip() + "\n" for block in blocks]


def test_the_readmes_python_runs():
    [code] = snippets("From Python")
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["losses"]["total"].isfinite()
    assert found["results"][1]["boxes"].max() > 2  # pixels


@pytest.fixture
def own_costs(monkeypatch):
    """Costs that a test registers are known in it alone."""
    registry.load_registered_parts()
    monkeypatch.setitem(registry._current.parts, "cost", dict(registry.parts("cost")))


def test_the_readmes_own_part_is_used(tmp_path, own_costs):
    _, part, recipe = snippets("Recipes")
    (tmp_path / "my_costs.py").write_text(part)
    (tmp_path / "mine.toml").write_text(recipe)
    criterion = detrkit.build_criterion(detrkit.load_recipe(tmp_path / "mine.toml"))
    assert criterion.matcher.costs["area"].weight == 5.0
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    output = SimpleNamespace(boxes=boxes[None, None])
    area = criterion.matcher.costs["area"](output, SimpleNamespace(boxes=boxes[None, :2]))
    expected = torch.tensor([[0.0, 0.08], [0.08, 0.0], [0.07, 0.15]])
    assert torch.allclose(area, expected[None, None])


def test_a_part_that_is_none_of_its_slots_kind_is_named(tmp_path, own_costs):
    _, part, recipe = snippets("Recipes")
    (tmp_path / "no_costs.py").write_text(part.replace("(Cost)", ""))
    (tmp_path / "mine.toml").write_text(recipe.replace("my_costs", "no_costs"))
    with pytest.raises(UserError, match=r"matcher\.costs\.area is of the class AreaCost, which is no Cost: derive it"):
        detrkit.build_criterion(detrkit.load_recipe(tmp_path / "mine.toml"))
