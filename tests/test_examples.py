"""The worked examples run against the real packages; what their page says of them is what is counted."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
PAGE = (ROOT / "docs" / "parts_in_your_detector.md").read_text(encoding="utf-8")
MOST = 12
"""lines of glue"""


def glue_lines(path):
    """The lines of code between `# glue` and `# end of glue`: no comments, docstrings or blank lines."""
    source = path.read_text(encoding="utf-8")
    texts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts |= set(range(node.lineno, node.end_lineno + 1))
    inside, count = False, 0
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        if text in ("# glue", "# end of glue"):
            assert inside is (text == "# end of glue"), f"{path.name}:{number}"
            inside = not inside
        elif inside and text and not text.startswith("#") and number not in texts:
            count += 1
    assert not inside, path.name
    return count


def test_lines_are_counted_without_comments_and_docstrings(tmp_path):
    path = tmp_path / "one.py"
    code = ["def f():", '    """Two', '    lines."""', "    # none", "", "    return (", "        1", "    )"]
    path.write_text("\n".join(["a = 1", "# glue", *code, "# end of glue"]))
    assert glue_lines(path) == 4


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs_and_says_one_line(path, capsys):
    if "import transformers" in (text := path.read_text(encoding="utf-8")) or "from transformers" in text:
        pytest.importorskip("transformers", minversion="5")
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert 1 <= glue_lines(path) <= MOST


def test_the_page_has_the_numbers_that_are_counted():
    rows = re.findall(r"^\| \[.+?\]\(\.\./examples/(\w+\.py)\) \| (\d+) \| (\d+) \|$", PAGE, flags=re.MULTILINE)
    assert {name: int(now) for name, _, now in rows} == {path.name: glue_lines(path) for path in EXAMPLES}
    sections = re.findall(r"^`examples/(\w+\.py)`, (\d+) lines?[.:]", PAGE, flags=re.MULTILINE)
    assert {name: int(count) for name, count in sections} == {path.name: glue_lines(path) for path in EXAMPLES}
    assert len(EXAMPLES) == 7
