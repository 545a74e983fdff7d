"""The command line around the verbs, and `recipes` and `inspect` on what ships."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detrkit
from detrkit.cli import main
from detrkit.cli.app import VERBS
from detrkit.cli.before_torch import set_environment
from detrkit.cli.console import Console, lasting_output
from detrkit.errors import DataError, UserError
from detrkit.recipe import list_recipes, load_recipe
from detrkit.recipe.overrides import is_override
from detrkit.runs.run_folder import new_run_folder
from detrkit.wording import typed
from detrkit.zoo.published import find_published


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line into a pipe; returns its exit code, standard output and standard error."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run_main(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["detrkit", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code or 0, *capsys.readouterr()

    return run_main


def told_without_torch(*arguments):
    """What the command line prints, in a process that fails if it has imported torch."""
    code = (
        f"import sys; sys.argv = ['detrkit', *{arguments}]\n"
        "from detrkit.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_recipes_are_listed_without_torch():
    assert "sap_dino_r50_12ep" in told_without_torch("recipes", "sap_dino")


def test_the_help_page_lists_the_verbs_and_does_not_wait_for_torch():
    told = told_without_torch("--help")
    for verb in ("train", "evaluate", "predict", "recipes", "inspect", "check-data", "convert"):
        assert re.search(rf"\b{verb}\b", told)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_is_whole(run, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "70")
    code, told, _ = run(verb, "--help")
    usage = re.search(r"Usage: (.*)", told)[1]
    assert (code, "[[" in usage, "...]..." in usage, "...}..." in usage) == (0, False, False, False)
    paragraphs = re.split(r"\n *\n", told.split("╭")[0])[1:]
    for line in [line.strip() for text in paragraphs for line in text.strip().splitlines()[:-1]]:
        assert len(line) > 40, "a paragraph is folded within its lines"
    assert verb != "train" or "runs/NAME" in told


@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
def test_what_takes_hours_goes_on_where_nobody_reads_it_any_more(monkeypatch, opened):
    reader, writer = opened()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        console = Console(file=lasting_output())
        for _ in range(2):
            console.print("epoch 1")
        file.write("for whoever else writes there\n")
    monkeypatch.setattr(sys, "stdout", None)
    assert lasting_output() is None


def test_threads_that_wait_spin_shortly_unless_somebody_says_otherwise(monkeypatch):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

    def set_with(**given):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        set_environment()
        return {name: os.environ[name] for name in names if name in os.environ}

    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert set_with() == {"GOMP_SPINCOUNT": "1000"}
    for name, value in {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "0"}.items():
        assert set_with(**{name: value}) == {name: value}


def test_recipes_lists_what_ships_without_the_bases(run):
    code, out, _ = run("recipes")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for entry in list_recipes():
        row = find_published(entry.reproduces)
        published = "" if row is None else f"{row['table']} {row['AP']:.1f} "
        assert f"{entry.name} {published}{entry.title}" in lines
    assert "base/" not in out


def test_recipes_of_a_table_alone(run):
    code, out, _ = run("recipes", "sap", "--table", "2")
    assert code == 0
    named = {line.split()[0] for line in out.splitlines() if line.startswith("sap_")}
    assert named == {f"sap_detr_{backbone}_50ep" for backbone in ("r50", "r101", "dc5_r50", "dc5_r101")}
    code, _, err = run("recipes", "sap", "--table", "9")
    assert (code, "none of these recipes has a row of Table 9; there are rows of 1, 2, 3, 4" in err) == (2, True)


@pytest.mark.parametrize("name", [entry.name for entry in list_recipes()])
def test_every_shipped_recipe_is_valid_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.title
    assert recipe.name == name


def test_a_shipped_file_given_by_its_path_has_its_shipped_name():
    entry = list_recipes()[0]
    assert load_recipe(entry.path).name == entry.name


def test_inspect_shows_values_with_their_sources_parts_and_work(run):
    code, out, _ = run("inspect", "quickstart", "train.epochs=3", "--height", "64", "--width", "96")
    assert code == 0
    assert re.search(r"^epochs = 3 +# command line$", out, re.MULTILINE)
    assert re.search(r"^type = \"salient_grid\" +# recipes/.*\.toml:\d+$", out, re.MULTILINE)
    assert re.search(r"^flip = .* +# default$", out, re.MULTILINE)
    assert re.search(r"queries: salient_grid", out)
    assert re.search(r"^whole +[\d,]+ +[\d,]+ +\d+\.\d\d$", out, re.MULTILINE)
    assert "one image of 64 x 96" in out
    for product in ("mm", "bmm", "convolution", "attention"):  # nothing of weight is left uncounted
        assert not re.search(rf"\b{product}\b", out.split("Not counted")[1])


def test_inspect_refuses_what_only_a_training_builds(run):
    """A matcher that had lost its costs was shown as if it were whole, and the training said so."""
    code, _, error = run("inspect", "quickstart", "matcher={type='many_to_one'}", "--height", "64", "--width", "96")
    assert code == 2
    assert "matcher.costs is empty" in error
    assert "drops those of the recipe's base" in error


def test_mistakes_are_printed_in_full_and_without_a_traceback(run):
    code, out, error = run("inspect", "quickstart", "train.epoch=3", "train.learning_rate=[1]")
    assert (code, out) == (2, "")
    assert error.startswith("2 mistakes in recipe quickstart:\n")
    assert 'command line: train.epoch: there is no such option of "train"; did you mean "epochs"?' in error
    assert "train.learning_rate: is [1], should be a number" in error
    assert "Traceback" not in error


def test_an_unknown_verb_and_an_unknown_recipe_end_with_code_2(run):
    assert run("inspekt")[0] == 2
    code, _, error = run("inspect", "quikstart")
    assert code == 2
    assert 'did you mean "quickstart"?' in error


@pytest.mark.parametrize(("raised", "code"), [(DataError("no [brackets] lost"), 2), (KeyboardInterrupt(), 130)])
def test_errors_and_interruption_have_their_exit_codes(run, monkeypatch, raised, code):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr("detrkit.recipe.load_recipe", fail)
    got, _, error = run("inspect", "quickstart")
    assert got == code
    assert str(raised) in error


@pytest.mark.parametrize("name", ["a" * 300, "a" * 252, ""])
def test_names_that_can_be_none_are_told_of(name):
    for load in (load_recipe, detrkit.load):
        with pytest.raises(UserError, match=r"too long|is empty|no known recipe of that name|no such run"):
            load(name)
    with pytest.raises(UserError, match=r"too long|is empty|there is no a"):
        _ = load_recipe("quickstart_coco", [f"data.root={name}"]).section("data")().train


def test_an_empty_argument_is_not_the_folder_that_one_is_in(run):
    code, _, told = run("check-data", "")
    assert (code, told) == (2, "an argument is empty: a shell's variable without a value, perhaps\n")


def test_arguments_are_values_unless_a_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    said = ["train.epochs=3", "lr=1", "lr=2", "my lr=1/recipe.toml", "quickstart", f"title={'a' * 300}"]
    assert [is_override(one) for one in said] == [True, False, True, False, False, True]
    assert typed(Path("-data")) == "./-data"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_training_sets_up_leaves_no_empty_folder(run, tmp_path, monkeypatch, sent):
    monkeypatch.chdir(tmp_path)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(sent, signal.SIG_DFL)  # under nohup SIGHUP is ignored

    def begin(**_):
        with new_run_folder(Path("runs"), "quickstart") as folder:
            assert folder.is_dir()
            signal.raise_signal(sent)

    monkeypatch.setattr("detrkit.cli.app.app", begin)
    try:
        assert run("train", "quickstart")[0] == 128 + sent
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert not (tmp_path / "runs").exists()


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("detrkit.recipe.load_recipe", fail)
    monkeypatch.setattr(sys, "argv", ["detrkit", "inspect", "quickstart"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_lack_of_memory_is_told_without_a_traceback(run, monkeypatch):
    def large(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.46 GiB.")

    monkeypatch.setattr("detrkit.cli.app.app", large)
    code, _, told = run("benchmark", "sap_detr_r50_50ep")
    assert code == 2
    assert told.splitlines() == [
        "the GPU has not enough memory. Fewer or smaller images at once need less.",
        "CUDA out of memory. Tried to allocate 1.46 GiB.",
    ]
