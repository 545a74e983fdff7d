"""Names that are no ordinary ones, in a terminal and in pictures."""

import io
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from detrkit.cli.console import Console
from detrkit.cli.evaluate import classes_table
from detrkit.cli.inspect import print_parts
from detrkit.cli.show import _open_image
from detrkit.drawing.charts import literal, new_figure, to_png
from detrkit.drawing.predictions import draw_predictions
from detrkit.evaluation.coco_stats import ClassResult
from detrkit.recipe import load_recipe
from detrkit.runs.run_folder import RunFolder
from detrkit.wording import in_a_line, visible
from tests.hunts.names import NAMES

from .test_cli_output import call, run  # noqa: F401  (the fixture)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat, Ζεύς 名前 \U0001f600\u200d\U0001f525", "a cat, Ζεύς 名前 \U0001f600\u200d\U0001f525"),
        ("two\nlines\tand more", "two\nlines\tand more"),
        ("\x1b[31mred\x9b\0", r"\x1b[31mred\x9b\x00"),
        ("\u202eabc\ud800", r"\u202eabc\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(tmp_path, text, shown):
    assert visible(text) == shown
    for printed in (text, Text(text)):
        file = io.StringIO()
        console = Console(file=file, width=80)
        console.print(printed)
        assert file.getvalue().expandtabs() == f"{shown}\n".expandtabs()
    RunFolder(tmp_path).print(text)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == shown + "\n"


def test_a_consoles_own_colours_and_tables_stay():
    file = io.StringIO()
    console = Console(file=file, width=40, force_terminal=True, color_system="standard")
    table = Table("class")
    table.add_row(Text("\x1b]0;title\x07", style="red"))
    console.print(table)
    assert "\x1b[31m" in file.getvalue()
    assert "\x1b]0" not in file.getvalue()


def class_result(name):
    parts = dict.fromkeys(("AP", "AP50", "AP75", "APS", "APM", "APL", "AR100"), 0.5)
    return ClassResult(category_id=1, name=name, **parts, truths=36_781, detections=103_678)


LONG = ["y" * 100, "y" * 99 + "z", "a very long name of many words " * 3, "two\nlines"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_classes_whose_names_begin_alike_are_told_apart_in_a_terminal(width):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    console.print(classes_table([class_result(name) for name in LONG]))
    letters = "".join(file.getvalue().split())
    assert "…" not in letters.replace("detect…", "")
    assert letters.count("z") == 1


def test_in_a_pipe_a_class_is_a_line(run, tmp_path, monkeypatch):  # noqa: F811
    """Nothing is folded or cut where no terminal has a width."""
    table = classes_table([class_result(name) for name in LONG])
    monkeypatch.setattr("detrkit.cli.evaluate.classes_table", lambda rows: table)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "data.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}],
        "annotations": [], "categories": [{"id": at, "name": name} for at, name in enumerate(LONG)],
    }))  # fmt: skip
    for arguments in (("evaluate", run, "--out", tmp_path / "out"), ("check-data", tmp_path / "data.json")):
        lines = call(*arguments).stdout.splitlines()
        for name in LONG:
            assert sum(" ".join(name.split()) in line for line in lines) == 1, (arguments, lines)


@pytest.mark.parametrize("name", ["[/red]", "[bold red]a[/]", "[link=file:///x]a[/link]", "a:cat:"])
def test_brackets_of_a_name_are_brackets_wherever_it_stands(name):
    """rich takes what stands in brackets for styles, and ends where one is closed that was not opened."""
    table = Table(name, title=name)
    table.add_row(name)
    tree = Tree(name)
    tree.add(name)
    file = io.StringIO()
    console = Console(file=file, width=80)
    for printed in (name, table, tree):
        console.print(printed)
    assert file.getvalue().count(name) == 6


def test_inspect_shows_any_title(capsys, tmp_path):
    (tmp_path / "a.toml").write_text('extends = "quickstart"\ntitle = "[/red] of [bold]"\n')
    print_parts(Console(), load_recipe(tmp_path / "a.toml"))
    assert "a  [/red] of [bold]" in capsys.readouterr().out


def test_a_name_in_a_line():
    assert in_a_line(" a\n b\tc ") == "a b c"
    long = in_a_line("x" * 10_000 + " 0.87")
    assert (len(long), long[-5:]) == (120, " 0.87")


def test_boxes_of_any_class_are_named_in_pictures():
    count = len(NAMES)
    found = {
        "scores": torch.full((count,), 0.9),
        "labels": torch.arange(count),
        "boxes": torch.tensor([[10.0, 10.0, 200.0, 100.0]]).repeat(count, 1) + torch.arange(count)[:, None],
    }
    picture = draw_predictions(Image.new("RGB", (320, 240)), found, list(NAMES.values()), threshold=0.3)
    assert np.asarray(picture).any()


def test_any_name_is_written_into_a_chart():
    figure = new_figure(4, 4, "light")
    for place, name in enumerate(NAMES.values()):
        figure.text(0.1, place / len(NAMES), literal(name), fontsize=6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        assert to_png(figure).startswith(b"\x89PNG")


def test_an_id_that_is_a_path_names_no_other_folder():
    image = Image.new("RGB", (8, 8))
    dataset = SimpleNamespace(
        image_ids=np.array([1]),
        records=SimpleNamespace(given_id=lambda _: "../../etc/x"),
        read=lambda index: (image, None, None),
    )
    source = SimpleNamespace(val=dataset, augment=SimpleNamespace(evaluate=lambda given: given))
    assert _open_image("val:../../etc/x", source)[1] == "val_.._.._etc_x"
