"""Going on with the runs of recipes: what may be different, what is refused, and what is left of a damaged one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from detrkit.cli.train import _begins, _run_to_resume
from detrkit.engine.train import train
from detrkit.engine.trainer import Trainer
from detrkit.errors import CheckpointError, UserError
from detrkit.recipe import load_recipe, registry
from detrkit.runs.checkpoint import read_state, read_weights
from detrkit.runs.history import read_metrics
from detrkit.runs.lock import locked
from detrkit.trained import open_trained
from tests.engine.small_runs import SMALL, run
from tests.engine.toys import Killed


@pytest.mark.parametrize("after", [2, 3])
def test_a_killed_run_resumes_to_the_same_bits(recipe, whole, tmp_path, monkeypatch, after):
    step = Trainer._step

    def killed(self, *arguments):
        if self.at.step == after:
            raise Killed
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", killed)
        with pytest.raises(Killed):
            train(recipe.with_values({"train.checkpoint_steps": 1}), tmp_path / "x")
    torch.rand(1)  # other random numbers in between must not matter
    resumed = load_recipe(tmp_path / "x" / "recipe.toml", ["train.checkpoint_steps=0"])
    assert train(resumed, tmp_path / "x", resume=True).finished
    for name in ("last/weights", "last/ema", "best/weights"):
        first, second = (read_weights(f / f"{name}.safetensors")[0] for f in (whole[0], tmp_path / "x"))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_resume_before_the_first_checkpoint(recipe, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            train(recipe, tmp_path / "x")
    train(load_recipe(tmp_path / "x" / "recipe.toml"), tmp_path / "x", resume=True)
    first, second = (read_weights(f / "last" / "weights.safetensors")[0] for f in (whole[0], tmp_path / "x"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_other_classes_on_resume(whole, recipe):
    other = recipe.with_values({"data.classes": ["circle", "ring"]})
    with pytest.raises(CheckpointError, match="was begun with 2 classes"):
        train(other, whole[0], resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("decoder.layers=3", r"decoder.layers: 2, now 3 \(what the detector computes\)"),
        ("geometry.movement=free", r'geometry.movement: "bounded", now "free" \(what the detector computes\)'),
        ("train.optimizer=sgd", r'train.optimizer: "adamw", now "sgd" \(what the optimiser keeps'),
        ("train.init_from=elsewhere", r'train.init_from: "none", now "elsewhere" \(where the run started from\)'),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(whole, change, said):
    folder, _ = whole
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = load_recipe(folder / "recipe.toml", [change])
    with pytest.raises(CheckpointError, match=f"belongs to another recipe.*needs a new run:\n  {said}"):
        train(other, folder, resume=True)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in before | after if before.get(path) != after.get(path)} <= set(folder.rglob("events.*"))
    open_trained(str(folder), ())


def test_a_resume_says_what_changes_and_each_checkpoint_keeps_its_recipe(copy):
    changed = load_recipe(copy / "recipe.toml", ["train.epochs=3", "losses.box.weight=1.0", "evaluate.pictures=0"])
    best = open_trained(str(copy), (), which="best").recipe
    train(changed, copy, resume=True)
    log = (copy / "log.txt").read_text()
    assert "from here on train.epochs: 2, now 3\n" in log
    assert "from here on losses.box.weight: 5.0, now 1.0\n" in log
    assert open_trained(str(copy), (), which="last").recipe.get("train.epochs") == 3
    if read_state(copy / "best")["position"]["step"] < 9:
        assert open_trained(str(copy), (), which="best").recipe.values == best.values


def test_a_resume_that_freezes_what_was_trained_is_refused(copy):
    before = (copy / "log.txt").read_text()
    with pytest.raises(CheckpointError, match=r"other parameters \(backbone\..* train\.backbone_learning_rate = 0"):
        train(load_recipe(copy, ["train.epochs=3", "train.backbone_learning_rate=0"]), copy, resume=True)
    assert (copy / "log.txt").read_text() == before


def test_a_resume_says_that_the_code_of_a_part_has_changed(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(registry._current.parts, "cost", dict(registry.parts("cost")))
    (tmp_path / "one.py").write_text("A = 1\n")
    (tmp_path / "mine.toml").write_text('extends = "quickstart"\nimports = ["one.py"]\n')
    mine, run = load_recipe(tmp_path / "mine.toml", SMALL), tmp_path / "run"
    train(mine, run)
    longer = [*SMALL, "train.epochs=3"]
    train(load_recipe(tmp_path / "mine.toml", longer), run, resume=True, trust=True)
    assert "the code of" not in (run / "log.txt").read_text()
    (tmp_path / "one.py").write_text("A = 2\n")
    train(load_recipe(tmp_path / "mine.toml", [*longer, "train.epochs=4"]), run, resume=True, trust=True)
    assert f"from here on the code of {tmp_path / 'one.py'} is another\n" in (run / "log.txt").read_text()
    hashes = [
        start["imports"][str(tmp_path / "one.py")] for start in json.loads((run / "environment.json").read_text())
    ]
    assert [hashes[0] == other for other in hashes] == [True, True, False]


def test_a_recipe_that_was_edited_in_a_run_does_not_speak_for_its_weights(copy):
    recipe = copy / "recipe.toml"
    said = open_trained(str(copy), ()).recipe.get("geometry.movement")
    recipe.write_text(recipe.read_text().replace(f'movement = "{said}"', 'movement = "free"'))
    assert load_recipe(recipe).get("geometry.movement") == "free"
    assert open_trained(str(copy), ()).recipe.get("geometry.movement") == said
    trained = open_trained(str(copy), [])
    assert trained.recipe.get("geometry.movement") == said
    assert f'geometry.movement: "{said}", now "free"' in trained.notes[0]
    with pytest.raises(CheckpointError, match="needs a new run"):
        train(load_recipe(recipe), copy, resume=True)


def test_a_recipe_takes_the_place_of_the_runs_own_after_a_step(copy, monkeypatch):
    before = (copy / "recipe.toml").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            train(load_recipe(copy, ["train.epochs=3"]), copy, resume=True)
    assert (copy / "recipe.toml").read_text() == before
    train(load_recipe(copy, ["train.epochs=3", "train.max_minutes=1e-9"]), copy, resume=True)
    assert load_recipe(copy).get("train.epochs") == 3


def test_a_run_whose_last_weights_are_damaged(copy):
    (copy / "last/weights.safetensors").unlink()  # `best` may be the same file by a hard link
    (copy / "last/weights.safetensors").write_bytes(b"half of th")
    with pytest.raises(CheckpointError, match=f"safetensors.*train --resume {copy}/best goes on from it"):
        train(load_recipe(copy), copy, resume=True)
    shutil.rmtree(copy / "best")
    with pytest.raises(CheckpointError, match="begin a new run in another folder"):
        train(load_recipe(copy), copy, resume=True)


def test_a_run_without_its_last_checkpoint(copy):
    shutil.rmtree(copy / "last")
    metrics = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=f"last is gone.*train --resume {copy}/best goes on from it"):
        train(load_recipe(copy), copy, resume=True)
    assert (copy / "metrics.jsonl").read_bytes() == metrics
    result = run("--resume", str(copy / "best"))
    assert result.exit_code == 0, result.exception
    position = read_state(copy / "last")["position"]
    assert position["step"] == 6
    assert [line["step"] for line in read_metrics(copy) if line["kind"] == "evaluate"] == [3, 6]
    for name in ("last", "best"):
        shutil.rmtree(copy / name)
    with pytest.raises(CheckpointError, match="has been evaluated; bring it back"):
        train(load_recipe(copy), copy, resume=True)


def test_two_trainings_of_one_run(copy):
    with locked(copy), pytest.raises(UserError, match="is being trained by another process"):
        train(load_recipe(copy), copy, resume=True)
    train(load_recipe(copy), copy, resume=True)  # the lock is gone with its holder


def test_a_project_is_not_taken_for_the_run_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project, run = Path("mine"), Path("runs/mine")
    for folder in (project, run):
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text("extends = 'quickstart'")
    with pytest.raises(UserError, match="mine is not the folder of a run"):
        _run_to_resume("mine", None, None)
    (run / "categories.json").write_text("[]")
    assert _run_to_resume("mine", None, None) == (run, "last")
    (run / "categories.json").unlink()  # lost: its checkpoint has them, too
    (run / "last").mkdir()
    (run / "last" / "weights.safetensors").touch()
    assert _run_to_resume("mine", None, None) == _run_to_resume(None, run, None) == (run, "last")
    assert _run_to_resume("quickstart", None, "mine") == _run_to_resume(str(run), None, "mine") == (run, "last")
    for given in [(str(run), None, "other"), (str(run / "last"), None, "other"), (None, run, "other")]:
        with pytest.raises(UserError, match="runs/mine and --name other are two runs"):
            _run_to_resume(*given)
    for given in (str(run), str(run / "last")):
        with pytest.raises(UserError, match="and --run-dir runs/other are two runs: take one away"):
            _run_to_resume(given, Path("runs/other"), None)
        assert _run_to_resume(given, run, None) == (run, "last")
    (run / "best").mkdir()
    assert _run_to_resume(str(run / "best"), run, None) == (run, "best")
    with pytest.raises(UserError, match="runs/none is not the folder of a run"):
        _run_to_resume("quickstart", None, "none")


def test_one_command_begins_a_run_and_goes_on_with_it(copy, tmp_path):
    """As a job has it that is started again by a cluster's queue."""
    made, new = copy, tmp_path / "new"
    assert _begins("quickstart", new)
    for recipe, run_dir in [("quickstart", made), ("quickstart", made / "best"), (None, new), ("quickstart", None)]:
        assert not _begins(recipe, run_dir)
    assert not _begins(str(made), new)  # which of the two was meant?
    assert run("quickstart", *SMALL, "--resume", "--run-dir", str(new)).exit_code == 0
    again = run("quickstart", *SMALL, "--resume", "--run-dir", str(new))
    assert "resumed after step 6 of 6" in again.output
