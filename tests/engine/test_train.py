"""The whole way with real parts: a recipe on the shapes data, made as small as it goes."""

import json
from types import SimpleNamespace

import pytest
import torch

from detrkit.data.records import Fault
from detrkit.detector import build_detector
from detrkit.engine.data_checks import left_out
from detrkit.engine.rehearsal import rehearse
from detrkit.engine.train import train
from detrkit.errors import CheckpointError, DataError, UserError
from detrkit.losses.base import Loss
from detrkit.recipe import load_recipe, registry
from detrkit.runs.checkpoint import read_weights
from detrkit.trained import open_trained
from tests.engine.small_runs import SMALL, run


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


def test_a_run_is_opened(whole):
    folder, _ = whole
    state = torch.get_rng_state()
    trained = open_trained(str(folder), (), which="last")
    assert torch.equal(torch.get_rng_state(), state)
    detector = trained.detector
    assert not detector.training
    assert [category.name for category in trained.categories] == ["circle", "bar"]
    assert trained.recipe.get("detector.classes") == 2
    average, metadata = read_weights(folder / "last" / "ema.safetensors")
    assert all(torch.equal(tensor, average[name]) for name, tensor in detector.state_dict().items())
    assert json.loads(metadata["categories"]) == [{"id": 1, "name": "circle"}, {"id": 2, "name": "bar"}]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert open_trained(str(folder / "last"), ()).recipe.values == trained.recipe.values


def test_start_from_another_class_count(whole, tmp_path):
    recipe = load_recipe(
        "quickstart",
        [*SMALL, "data.classes=['ring','star','cross']", f"train.init_from='{whole[0]}'", "train.epochs=1"],
    )
    train(recipe, tmp_path / "x")
    log = (tmp_path / "x" / "log.txt").read_text()
    assert "(class count: 2 rows in the file, 3 here)" in log
    assert log.count("left fresh") == len([n for n in log.splitlines() if "class count" in n])
    trained = open_trained(str(tmp_path / "x"), ())
    assert trained.recipe.get("detector.classes") == 3
    assert trained.detector.decoder.head.classes[0].last.out_features == 3


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


def test_a_recipe_in_a_folder_called_like_a_value_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    (tmp_path / "lr=1" / "recipe.toml").write_text('extends = "quickstart"\n')
    assert "recipe lr=1/recipe.toml:\n  command line: train.epochs" in str(
        run("lr=1/recipe.toml", "train.epochs=0").exception
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quickstart", "--name", ".."), "--name is '..'; should be the name of a folder below runs/"),
        (("quickstart", "--name", "/tmp/x"), "--name is '/tmp/x'"),
        (("quickstart", "--run-dir", "a", "--name", "b"), "--run-dir a and --name b, which is runs/b, are two places"),
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
