"""The whole way with real parts: a recipe on the shapes data, made as small as it goes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from detrkit.cli.app import app
from detrkit.cli.train import _begins, _run_to_resume
from detrkit.data.records import Fault
from detrkit.detector import build_detector
from detrkit.engine.data_checks import left_out
from detrkit.engine.rehearsal import rehearse
from detrkit.engine.train import train
from detrkit.engine.trainer import Trainer
from detrkit.errors import CheckpointError, DataError, UserError
from detrkit.losses.base import Loss
from detrkit.recipe import load_recipe, registry
from detrkit.runs.checkpoint import load_run, read_state, read_weights
from detrkit.runs.history import read_metrics
from detrkit.runs.lock import locked
from detrkit.trained import open_trained

from .toys import toy_trainer

SMALL = (
    "detector.width=16",
    "detector.heads=2",
    "detector.classes=none",
    "encoder.layers=1",
    "encoder.feedforward=16",
    "decoder.layers=2",
    "decoder.feedforward=16",
    "queries.grid=[3,3]",
    "data.image_size=64",
    "data.train_images=12",
    "data.val_images=3",
    "data.classes=['circle','bar']",
    "train.epochs=2",
    "train.batch_size=4",
    "train.micro_batch=3",
    "train.warmup_steps=1",
    "train.ema_decay=0.9",
    "train.log_every=2",
    "train.workers=0",
    "train.device=cpu",
    "evaluate.pictures=1",
)  # 3 steps an epoch


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("quickstart", SMALL)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    outcome = train(recipe, folder)
    assert outcome.finished
    return folder, outcome


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        ("quickstart", ["geometry.type=box", "queries.type=anchor_boxes"], "needs a geometry that predicts points"),
        ("quickstart", ["decoder.positions=['point']"], "'side' needs a query position that gives the code 'side'"),
    ],
)
def test_parts_that_do_not_go_together_are_named_before_a_run_is_made(tmp_path, recipe, overrides, said):
    grid = "queries.grid=[3,3]"
    small = [value for value in SMALL if value != grid or "queries.type=anchor_boxes" not in overrides]
    with pytest.raises(UserError, match=f"the parts of {recipe} do not go together: .*{said}"):
        train(load_recipe(recipe, [*small, *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Broken(Loss):
    """A loss of one's own that calls what tensors do not have."""

    def __init__(self, *, weight: float = 1.0):
        self.weight = weight

    def __call__(self, output, targets, matches, objects):
        return output.logits.nothing()


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"losses.mine.type": "test_broken"}, AttributeError, "nothing"),
        ({"train.freeze": ["bakbone"]}, UserError, 'no "bakbone"; .*did you mean "backbone"'),
        ({"train.backbone": ["body"]}, UserError, 'train.backbone: this detector has no "body"'),
        ({"train.parameters.mine": {"type": "norms", "part": "haed"}}, UserError, r"parameters\.mine\.part: this"),
        ({"train.place_rate_factor": 0.1}, UserError, "has nothing to act on"),
    ],
)
def test_what_fails_before_the_first_step_leaves_no_run(tmp_path, recipe, values, error, said, monkeypatch):
    monkeypatch.setitem(registry._current.parts, "loss", {**registry.parts("loss"), "test_broken": Broken})
    with pytest.raises(error, match=said):
        train(recipe.with_values(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Wide(torch.nn.Module):
    """Refuses images narrower than `least` pixels."""

    def __init__(self, least):
        super().__init__()
        self.least, self.weight = least, torch.nn.Parameter(torch.zeros(()))

    def forward(self, images, mask, targets):
        assert images.shape[-1] >= self.least
        return images.mean() * self.weight


class Total(torch.nn.Module):
    def forward(self, output, targets, objects, images):
        return {"total": output * objects}


@pytest.mark.parametrize("least", [0, 100, 1000])
def test_a_part_that_wants_larger_images_is_rehearsed_on_those_of_the_training(least):
    source = load_recipe("quickstart", ["data.image_size=128", "data.train_images=2"]).section("data")()
    detector = Wide(least)
    if least == 1000:
        with pytest.raises(AssertionError):
            rehearse(detector, Total(), name="wide", source=source)
    else:
        rehearse(detector, Total(), name="wide", source=source)
    assert detector.weight.grad is None


def test_a_run_is_a_folder(whole):
    folder, outcome = whole
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    checkpoint = {"weights.safetensors", "ema.safetensors", "state.pt"}
    assert files >= {"recipe.toml", "categories.json", "environment.json", "metrics.jsonl", "log.txt"}
    assert files >= {f"{which}/{name}" for which in ("last", "best") for name in checkpoint}
    assert files >= {"pictures/epoch_0001/1.png", "pictures/epoch_0002/1.png"}
    assert any(name.startswith("tensorboard/events") for name in files)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("evaluate", 3),
        ("train", 4),
        ("train", 6),
        ("evaluate", 6),
    ]
    assert lines[-1]["AP"] == outcome.stats["AP"]
    assert {"class", "box", "giou", "class.0"} <= lines[0]["losses"].keys()
    (start,) = json.loads((folder / "environment.json").read_text())
    assert start["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "effective batch 4 = 1 process x 4 images in 2 pieces" in (folder / "log.txt").read_text()


def test_load_run(whole):
    folder, _ = whole
    recipe, detector, categories = load_run(folder, "last")
    assert not detector.training
    assert [category.name for category in categories] == ["circle", "bar"]
    assert recipe.get("detector.classes") == 2
    average, metadata = read_weights(folder / "last" / "ema.safetensors")
    assert all(torch.equal(tensor, average[name]) for name, tensor in detector.state_dict().items())
    assert json.loads(metadata["categories"]) == [{"id": 1, "name": "circle"}, {"id": 2, "name": "bar"}]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert load_run(folder / "last")[0].values == recipe.values


class Killed(BaseException):
    pass


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


def test_start_from_another_class_count(whole, tmp_path):
    recipe = load_recipe(
        "quickstart",
        [*SMALL, "data.classes=['ring','star','cross']", f"train.init_from='{whole[0]}'", "train.epochs=1"],
    )
    train(recipe, tmp_path / "x")
    log = (tmp_path / "x" / "log.txt").read_text()
    assert "(class count: 2 rows in the file, 3 here)" in log
    assert log.count("left fresh") == len([n for n in log.splitlines() if "class count" in n])
    recipe, detector, _ = load_run(tmp_path / "x")
    assert recipe.get("detector.classes") == 3
    assert sum(p.numel() for p in detector.parameters()) > 0


def test_start_from_another_number_of_queries(whole, tmp_path):
    more = load_recipe("quickstart", [*SMALL, "queries.grid=[4,4]", f"train.init_from='{whole[0]}'", "train.epochs=1"])
    train(more, tmp_path / "x")
    log = (tmp_path / "x" / "log.txt").read_text()
    assert "queries.sides (number of queries: 9 rows in the file, 16 here)" in log
    assert log.count("left fresh") == 2  # the sides and the grid itself


def test_weights_of_another_system(whole, tmp_path):
    fewer = load_recipe("quickstart", [*SMALL, "detector.width=32", f"train.init_from='{whole[0]}'"])
    with pytest.raises(CheckpointError, match="another kind of detector"):
        train(fewer, tmp_path / "x")
    assert not (tmp_path / "x").exists()


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
    load_run(folder)


def test_what_the_data_lost_is_said():
    def split(*faults):
        return SimpleNamespace(faults=[Fault(kind, image, None, f"see {kind}", loses) for kind, image, loses in faults])

    train = split(("bad box", 1, True), ("bad box", 2, True), ("bad area", 3, False), ("box form", None, False))
    assert left_out(SimpleNamespace(train=train, val=split())) == [
        "train: see box form",
        "2 images or annotations of train are left out (bad box: 2); see check-data",
    ]


def test_too_few_classes(recipe, tmp_path):
    with pytest.raises(DataError, match=r"detector.classes is 1 .*the data set has 2 classes"):
        train(recipe.with_values({"detector.classes": 1}), tmp_path / "x")


def test_a_device_that_is_not_there(recipe, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    with pytest.raises(UserError, match="no CUDA GPU"):
        train(recipe.with_values({"train.device": "cuda"}), tmp_path / "x")
    with pytest.raises(UserError, match="accepted are auto, cpu"):
        train(recipe.with_values({"train.device": "gpu"}), tmp_path / "x")


def test_every_parameter_learns(recipe, whole):
    torch.manual_seed(recipe.get("train.seed"))
    fresh = build_detector(recipe.with_values({"detector.classes": 2}))
    trained, _ = read_weights(whole[0] / "last" / "weights.safetensors")
    learning = {name: p for name, p in fresh.named_parameters() if p.requires_grad}
    assert len(learning) > 50
    assert [name for name, parameter in learning.items() if torch.equal(parameter, trained[name])] == []


def run(*arguments):
    return CliRunner().invoke(app, ["train", *arguments])


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run("quickstart", *SMALL, "train.max_minutes=1e-9", "--name", "mine")
    assert first.exit_code == 0
    assert (
        "stopped after step 1 (train.max_minutes). Go on with: detrkit train --resume runs/mine, for as long again"
        in first.output
    )
    second = run("--resume", "runs/mine", "train.max_minutes=none")
    assert second.exit_code == 0
    assert "resumed after step 1 of 6" in second.output
    assert "next: detrkit evaluate runs/mine" in second.output
    assert len(json.loads((tmp_path / "runs/mine/environment.json").read_text())) == 2
    assert "nothing is left to do" not in second.output
    assert "nothing is left to do; a larger train.epochs" in run("--resume", "runs/mine").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which recipe"),
        (("--resume",), "which run"),
        (("--resume", "runs/none"), "runs/none is not the folder of a run"),
        (("--resume", "train.epochs=3"), "which run"),
    ],
)
def test_command_line_mistakes(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_run_in_the_place_of_a_recipe(whole):
    result = run(str(whole[0]))
    assert "is a run. Go on with it: detrkit train --resume" in str(result.exception)


def test_images_that_cannot_be_read_are_named_once_and_counted_at_the_end(tmp_path):
    said = []
    trainer = toy_trainer(tmp_path / "run", epochs=2)
    trainer.reporter.say = lambda line, **_: said.append(line)
    loader = trainer.source.loader

    def with_one_bad(**options):
        return [replace(batch, skipped=("b.jpg: is broken",)) for batch in loader(**options)]

    trainer.source.loader = with_one_bad
    trainer.fit()
    told = [line for line in said if "b.jpg" in line]
    assert told == [
        "warning: b.jpg: is broken; another image stands in its place",
        "warning: 1 image could not be read, and others stood in their place: b.jpg: is broken",
    ]


@pytest.fixture
def copy(whole, tmp_path):
    """A run that is as good as finished, to be changed."""
    return shutil.copytree(whole[0], tmp_path / "copy")


def test_a_resume_says_what_changes_and_each_checkpoint_keeps_its_recipe(copy):
    changed = load_recipe(copy / "recipe.toml", ["train.epochs=3", "losses.box.weight=1.0", "evaluate.pictures=0"])
    best = load_run(copy, "best")[0]
    train(changed, copy, resume=True)
    log = (copy / "log.txt").read_text()
    assert "from here on train.epochs: 2, now 3\n" in log
    assert "from here on losses.box.weight: 5.0, now 1.0\n" in log
    assert load_run(copy, "last")[0].get("train.epochs") == 3
    if read_state(copy / "best")["position"]["step"] < 9:
        assert load_run(copy, "best")[0].values == best.values


def test_a_resume_names_the_values_that_group_parameters_otherwise(copy):
    rule = "train.parameters.head={type='all', part='decoder', rate_factor=3}"
    before = (copy / "log.txt").read_text()
    with pytest.raises(CheckpointError, match="trained with other parameter groups") as caught:
        train(load_recipe(copy, ["train.epochs=3", "train.backbone_learning_rate=0", rule]), copy, resume=True)
    said = str(caught.value).partition("What has changed of these:\n")[2].splitlines()
    assert said[0] == "  train.backbone_learning_rate: 0.003, now 0.0"
    assert "  train.parameters.head.rate_factor: not set, now 3.0" in said
    assert not [line for line in said if "epochs" in line]
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
    said = load_run(copy)[0].get("geometry.movement")
    recipe.write_text(recipe.read_text().replace(f'movement = "{said}"', 'movement = "free"'))
    assert load_recipe(recipe).get("geometry.movement") == "free"
    assert load_run(copy)[0].get("geometry.movement") == said
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
