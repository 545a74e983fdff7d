"""What the pages under docs/ say against what the code says."""

import importlib.util
from pathlib import Path

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
