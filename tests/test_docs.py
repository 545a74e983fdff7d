"""What the pages under docs/ say against what the code says."""

import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import detrkit
from detrkit.errors import UserError
from detrkit.export.form import ExportedForm, Form
from detrkit.recipe import registry
from detrkit.structures import Targets

ROOT = Path(__file__).resolve().parents[1]


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_table_of_systems_is_what_the_script_prints(capsys):
    """After a change of a part: python benchmarks/lines_per_system.py, and its table into docs/systems.md."""
    load_script(ROOT / "benchmarks" / "lines_per_system.py").main()
    page = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line.startswith("|")] == capsys.readouterr().out.splitlines()


def test_the_page_of_other_libraries_counts_what_is_here():
    registry.load_registered_parts()
    lines = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split(" | ")[0][2:] for line in lines if line.startswith("| ")} - {"system", "---"}
    pairs = {name for name in rows if name.startswith("sap_")} - {"sap_detr"}
    systems = rows - pairs - {"faster_rcnn", "relation_dino"}  # the latter is DINO with Relation-DETR's part
    families = [name for name in registry.parts("checkpoint_names") if name.startswith("transformers_")]
    assert (len(systems), len(pairs), len(families)) == (19, 6, 5)  # in words on the page: change them, too
    page = (ROOT / "docs" / "others.md").read_text(encoding="utf-8")
    assert [word in page for word in ("nineteen DETR", "six pairs", "five of transformers")] == [True] * 3


def test_the_table_of_new_parts_is_what_the_script_prints(capsys):
    """After a change of a part or of results: python benchmarks/new_parts.py, and its table into docs/new_parts.md."""
    load_script(ROOT / "benchmarks" / "new_parts.py").main()
    page = (ROOT / "docs" / "new_parts.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line.startswith("|")] == capsys.readouterr().out.splitlines()


def snippets(heading, page="README.md"):
    """The indented blocks of a part of a page, a comment's blank lines with them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", part, flags=re.MULTILINE)
    return [textwrap.dedent(block).strip() + "\n" for block in blocks]


def test_the_readmes_python_runs():
    _, code = snippets("From Python")
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
    with pytest.raises(UserError, match=r"cost .area. is of the class AreaCost, which is no Cost: derive it"):
        detrkit.build_criterion(detrkit.load_recipe(tmp_path / "mine.toml"))


@pytest.fixture
def own_parts(monkeypatch, tmp_path):
    """Parts that a test registers are known in it alone, and so are their modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry.load_registered_parts()
    for slot in ("cost", "loss", "matcher", "queries", "term", "geometry", "head", "block"):
        monkeypatch.setitem(registry._current.parts, slot, dict(registry.parts(slot)))
    yield
    for name in [n for n, one in sys.modules.items() if str(getattr(one, "__file__", "")).startswith(str(tmp_path))]:
        del sys.modules[name]


def own_recipe(folder):
    """The recipe of docs/own_parts.md, with its parts beside it."""
    page = (ROOT / "docs" / "own_parts.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (A .*)$", page, flags=re.MULTILINE)[:-1]  # the last one is the recipe
    assert len(headings) == 8
    for heading in headings:
        [code] = snippets(heading, "docs/own_parts.md")
        said = re.search(rf"## {heading}\n\n.*?: (\d+) lines, `(\w+\.py)`", page, flags=re.DOTALL)
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) == int(said[1]), heading
        (folder / said[2]).write_text(code)
    recipe, _ = snippets("A recipe that uses them", "docs/own_parts.md")
    (folder / "mine.toml").write_text(recipe)
    return detrkit.load_recipe(folder / "mine.toml")


@pytest.mark.slow  # tracing takes seconds
def test_parts_of_ones_own_are_exported_for_any_batch(tmp_path, own_parts):
    """One asked for `len` of a tensor, which made a program of torch.export one of two images alone."""
    recipe = own_recipe(tmp_path)
    form = ExportedForm(detrkit.build_detector(recipe), Form(pixels="normalised", mask=False, detections=False)).eval()
    free = tuple(dict.fromkeys(places, torch.export.Dim.DYNAMIC) for places in form.form.free.values())
    with torch.no_grad():
        program = torch.export.export(form, form.form.example(), dynamic_shapes=[free]).module()
        images = torch.rand(3, 3, 64, 96)
        for ours, theirs in zip(form(images), program(images), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_parts_of_ones_own_train_together(tmp_path, own_parts):
    """As docs/own_parts.md has them, of base classes alone."""
    recipe = own_recipe(tmp_path)
    detector, criterion = detrkit.build_detector(recipe).train(), detrkit.build_criterion(recipe)
    targets = [{"labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.1]])}]
    output = detector(torch.rand(1, 3, 64, 96), None, targets)
    losses = criterion(output, targets)
    losses["total"].backward()
    assert criterion.matcher.costs["shape"].weight == 0.5
    assert losses["shape"] > 0
    [pairs] = criterion.matcher.match([(output, Targets.pad(targets))])
    assert len({tuple(row.tolist()) for row in pairs.query}) == 1
    assert pairs.teaches.sum(1).tolist() == [2, 2, 2]
    assert pairs.teaches.any(0).all()
    assert output.boxes.shape[2] == 49
    assert detector.queries.sizes.grad.abs().sum() > 0
    assert type(detector.decoder.geometry).__name__ == "DeltaGeometry"
    first = detector.decoder.layers[0].cross_attention
    assert first.terms["cosine"].query.projection.weight.grad.abs().sum() > 0
    assert first.keys["cosine"].projection.weight.grad.abs().sum() > 0
    assert output.extras["denoising"].output.boxes.isfinite().all()
    assert detector.decoder.head.directions.grad.abs().sum() > 0
    # Two queries for each of two objects in each layer, those whose boxes are closest.
    closest = output.extras["closest"]
    [target] = targets
    found = closest.assign(closest.output, Targets.pad(targets))()
    assert found.query.shape == (3, 4)
    far = (output.boxes[:, 0, :, None] - target["boxes"]).abs().sum(-1)  # [Y, N, T]
    for layer in range(3):
        for query, index in zip(found.query[layer], found.target[layer], strict=True):
            assert (far[layer, :, index] < far[layer, query, index]).sum() < 2
    assert losses["closest/box"] > 0


def test_the_part_of_the_contributing_page_is_used(tmp_path, monkeypatch):
    registry.load_registered_parts()
    monkeypatch.setitem(registry._current.parts, "loss", dict(registry.parts("loss")))
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [part] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    recipe, _ = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "smooth_l1.py").write_text(part)
    (tmp_path / "smooth.toml").write_text(recipe)
    loss = detrkit.build_criterion(detrkit.load_recipe(tmp_path / "smooth.toml")).losses["box"]
    assert (loss.weight, loss.beta) == (5.0, 0.05)
    predicted = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])  # 0.02 off in one number, 0.3 in another
    truth = torch.tensor([[[0.52, 0.5, 0.5, 0.4]]])
    matches = SimpleNamespace(take=lambda boxes: boxes, take_targets=lambda boxes: boxes)
    found = loss(SimpleNamespace(boxes=predicted), SimpleNamespace(boxes=truth), matches, 2)
    assert torch.allclose(found, torch.tensor([(0.02**2 / (2 * 0.05) + 0.3 - 0.05 / 2) / 2]))


def test_the_table_of_base_classes_is_the_registry_s():
    registry.load_registered_parts()
    page = (ROOT / "docs" / "own_parts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| (.*?) ?\|$", page, flags=re.MULTILINE)
    said = {slot: (base, re.findall(r"\w+", offers)) for slot, base, offers in rows}
    known = {
        name: (f"{slot.base.__module__}.{slot.base.__qualname__}", list(slot.offers))
        for name, slot in registry.slots().items()
        if name != "checkpoint_names"  # its parts are tables of names, made by functions
    }
    assert said == known


def test_every_part_is_of_its_slots_class():
    registry.load_registered_parts()
    for name, slot in registry.slots().items():
        for part, build in registry.parts(name).items():
            assert slot.base is None or issubclass(build, slot.base), (name, part)


@pytest.mark.parametrize("name", ["floors", "loop"])
def test_the_pictures_are_drawn_from_the_code_as_it_is(name):
    """After a change of floors, slots or parts: python docs/draw_architecture.py."""
    script = load_script(ROOT / "docs" / "draw_architecture.py")
    drawn = {"floors": script.draw_floors, "loop": script.draw_loop}[name]()
    assert drawn == (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")


def test_every_room_of_the_floors_is_in_the_table():
    script = load_script(ROOT / "docs" / "draw_architecture.py")
    rooms = {room for floor in script.floors() for room in floor} - {"|"}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("\n## The floors\n")[1]
    named = re.findall(r"`(\w+)(?:/|\.py)`", page.split("\n## ")[0])
    there = {path.parent.name for path in ROOT.glob("detrkit/*/__init__.py")} | {"cli"}
    there |= {path.stem for path in ROOT.glob("detrkit/[!_]*.py")}
    assert rooms == set(named) == there


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in ROOT.glob("docs/*.md"))])
def test_files_that_pages_name_are_there(page):
    path = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
    text = path.read_text(encoding="utf-8")
    tops = "detrkit|cli|docs|tests|recipes|benchmarks|examples"
    named = re.findall(rf"`((?:{tops})/[\w./-]+\.(?:py|md|toml|svg))`", text) + re.findall(r"\]\((\w[\w./]+)\)", text)
    made = ("parts/", "reference/")  # pages of the site alone, which tests/test_site.py looks for
    for name in [name for name in named if not name.startswith(made)]:
        assert (ROOT / name).exists() or (path.parent / name).exists(), name


def test_an_evaluation_on_other_data_is_told_with_its_folder():
    """`detrkit evaluate` refuses it without: the run's folder keeps the evaluation on the run's own data."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    commands = re.findall(r"detrkit evaluate [^`\n]*data[ .][^`\n]*", "\n".join(p.read_text("utf-8") for p in pages))
    assert len(commands) >= 2
    assert [command for command in commands if "--out" not in command] == []
