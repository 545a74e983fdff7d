"""Strangers' code: what a run, a checkpoint or a base elsewhere imports is refused until it is trusted."""

import shutil
import sys

import pytest
from typer.testing import CliRunner

import detrkit
from detrkit.cli.app import app
from detrkit.engine.train import train
from detrkit.errors import UserError
from detrkit.recipe import load_recipe, load_run_recipe
from detrkit.runs.checkpoint import read_weights, save_weights
from detrkit.runs.history import read_run
from tests.hunts.small_run import SMALL_RUN

REFUSED = "code would be run that you did not name"


@pytest.fixture
def part(tmp_path):
    """Writes a module that says in `ran` how often it was imported."""

    def write(name, folder=tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.py"
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
        return path

    yield write
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.fixture
def ran(tmp_path):
    return lambda: (tmp_path / "ran").read_text().split() if (tmp_path / "ran").exists() else []


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that imports nothing."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    train(load_recipe("quickstart", [*SMALL_RUN, "train.epochs=1"]), folder)
    return folder


@pytest.fixture
def theirs(plain, part, tmp_path):
    """A run from elsewhere, whose recipe and weights import a file that came along."""
    run = shutil.copytree(plain, tmp_path / "theirs")
    evil = part("evil_part", run)
    recipe = run / "recipe.toml"
    recipe.write_text(f'imports = ["evil_part.py"]\n{recipe.read_text()}')
    for which in ("last", "best"):
        for name in ("weights", "ema"):
            path = run / which / f"{name}.safetensors"
            if path.exists():
                weights, metadata = read_weights(path)
                path.unlink()
                said = f"imports = ['{evil}']\n{metadata['recipe']}"
                save_weights(weights, path, metadata | {"recipe": said})
    return run


def verb(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_every_verb_refuses_what_came_along_with_a_run(theirs, ran, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    said = (
        ("evaluate", theirs),
        ("predict", theirs, image, "--out", tmp_path / "drawn"),
        ("show", theirs, image, "--out", tmp_path / "shown"),
        ("compare", theirs, "--size", "64x64"),
        ("train", "--resume", theirs),
        ("train", "--resume", theirs / "best"),
        ("inspect", theirs),
        ("inspect", theirs / "recipe.toml"),
        ("check-data", theirs / "recipe.toml"),
        ("convert", theirs / "last/weights.safetensors", theirs, "-o", tmp_path / "x.safetensors"),
    )
    for arguments in said:
        result = verb(*arguments)
        assert REFUSED in str(result.exception), arguments
        assert str(theirs / "evil_part.py") in str(result.exception)
    for call in (detrkit.load, load_recipe, read_run):
        with pytest.raises(UserError, match=REFUSED):
            call(theirs)
    assert ran() == []


def test_the_recipe_in_the_weights_is_no_way_around(theirs, plain, ran):
    (theirs / "recipe.toml").write_bytes((plain / "recipe.toml").read_bytes())
    with pytest.raises(UserError, match=r"evil_part.py \(.*safetensors \(the one inside\):1\)"):
        detrkit.load(theirs)
    (theirs / "recipe.toml").write_text("")  # the resume then reads the weights' own
    assert REFUSED in str(verb("train", "--resume", theirs).exception)
    assert ran() == []


def test_what_is_trusted_is_run_and_remembered_at_its_place(theirs, ran, tmp_path):
    result = verb("evaluate", theirs, "--trust")
    assert result.exit_code == 0, result.exception
    assert ran() == ["evil_part"]
    detrkit.load(theirs)
    copied = shutil.copytree(theirs, tmp_path / "copied")
    with pytest.raises(UserError, match=REFUSED):
        detrkit.load(copied)
    detrkit.load(copied, trust=True)
    (theirs / "evil_part.py").write_text("1 / 0")
    with pytest.raises(UserError, match="has changed since it was last trusted here"):
        detrkit.load(theirs)


def test_a_run_made_here_goes_on_as_before(part, ran, tmp_path):
    own = part("own_part", tmp_path / "mine")
    (tmp_path / "mine" / "mine.toml").write_text('extends = "quickstart"\nimports = ["own_part.py"]\n')
    train(load_recipe(tmp_path / "mine" / "mine.toml", [*SMALL_RUN, "train.epochs=1"]), tmp_path / "run")
    assert ran() == ["own_part"]
    assert detrkit.load(tmp_path / "run").recipe.values["imports"] == [str(own)]
    assert verb("train", "--resume", tmp_path / "run", "train.epochs=2").exit_code == 0
    assert verb("evaluate", tmp_path / "run").exit_code == 0
    copied = shutil.copytree(tmp_path / "run", tmp_path / "copied")
    assert REFUSED in str(verb("evaluate", copied).exception)


def test_a_base_in_another_folder_is_asked_for(part, ran, tmp_path):
    part("far_part", tmp_path / "far")
    (tmp_path / "far" / "base.toml").write_text('extends = "quickstart"\nimports = ["far_part.py"]\n')
    near = tmp_path / "near"
    near.mkdir()
    (near / "mine.toml").write_text('extends = "../far/base"\n')
    with pytest.raises(UserError, match=rf"{REFUSED}.*\n  {tmp_path}/far/far_part.py \(.*base.toml:2\)"):
        load_recipe(near / "mine.toml")
    assert ran() == []
    # Who names it, on the command line or in the recipe, trusts it.
    load_recipe(near / "mine.toml", [f"imports=['{tmp_path}/far/far_part.py']"])
    assert ran() == ["far_part"]
    load_recipe(tmp_path / "far" / "base.toml")
    (tmp_path / "mine.toml").write_text('extends = "far/base"\n')  # below the folder that was named
    load_recipe(tmp_path / "mine.toml")
    load_recipe(near / "mine.toml", trust=True)
    (near / "link.toml").symlink_to(tmp_path / "far" / "base.toml")
    load_recipe(near / "link.toml")  # named, by whatever name


@pytest.mark.parametrize("lacks", ["place", "home"])
def test_without_a_place_for_the_record_a_training_goes_on(part, tmp_path, monkeypatch, lacks):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    if lacks == "home":  # as in a container that is run as a user who has no name there
        for name in ("XDG_STATE_HOME", "HOME"):
            monkeypatch.delenv(name)
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    part(f"{lacks}_part")
    (tmp_path / "mine.toml").write_text(f'extends = "quickstart"\nimports = ["{lacks}_part.py"]\n')
    train(load_recipe(tmp_path / "mine.toml", [*SMALL_RUN, "train.max_minutes=1e-9"]), tmp_path / "run")
    assert "--trust" in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(UserError, match="--trust"):
        load_run_recipe(tmp_path / "run")
    load_run_recipe(tmp_path / "run", trust=True)
