"""What is said of some damaged files of a run; `python -m tests.hunts damages` tries all that there are."""

import shutil

import pytest
import torch

from detrkit.engine.train import train
from detrkit.errors import CheckpointError
from detrkit.recipe import load_recipe
from detrkit.runs.history import read_run
from detrkit.runs.recipes import run_recipe
from detrkit.trained import open_trained

from .small_run import make_run

ON = ["train.epochs=3", "train.max_minutes=1e-9"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("damaged") / "whole")


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def change_state(run, change):
    path = run / "last/state.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["position"].update(step="x"), "position.step is 'x', not a count"),
        (lambda s: s["position"].pop("minutes"), "position should have best_ap, best_step, evaluated, minutes, step"),
        (lambda s: s["position"].update(minutes=10**400), "position.minutes is too large, not a number"),
        (lambda s: s.update(meter=s), "meter.sums is absent, not a table"),
        (lambda s: s.pop("steps_per_epoch"), "steps_per_epoch is absent"),
        (lambda s: s.update(metrics_size=-1), "metrics_size is -1"),
        (lambda s: s["optimiser"]["state"].update({10**6: {}}), r"optimiser.state.1000000 is of no parameter"),
    ],
)
def test_what_is_said_of_a_damaged_state(run, change, said):
    change_state(run, change)
    with pytest.raises(CheckpointError, match=rf"last/state.pt is damaged: {said}.* --resume {run}/best goes on"):
        train(run_recipe(run, ON), run, resume=True)


def test_moments_of_another_shape_are_refused_by_name(run):
    change_state(run, lambda s: s["optimiser"]["state"][0].update(exp_avg=torch.zeros(5, 7)))
    with pytest.raises(CheckpointError, match=r"exp_avg of \S+ is \[5, 7\], should be \["):
        train(run_recipe(run, ON), run, resume=True)


@pytest.mark.parametrize("file", ["recipe.toml", "categories.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "[1, 2", "[" * 20_000])
def test_a_damaged_side_file_stops_no_resume_and_is_mended(run, file, content):
    (run / file).write_text(content)
    if file == "categories.json":
        assert [category.name for category in open_trained(str(run), []).categories] == ["circle", "bar"]
    train(run_recipe(run, ON), run, resume=True)
    if file == "environment.json":
        assert (run / "environment.json.damaged").read_text() == content
    assert load_recipe(run).get("train.epochs") == 3
    train(run_recipe(run, ON), run, resume=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "is no record"),
        ('"x"', "is no record"),
        ('{"kind": "evaluate", "step": 3}', '"epoch" should be a count'),
        ('{"kind": "evaluate", "step": 3, "epoch": 1, "AP": "x"}', "its numbers should be numbers or null"),
        pytest.param("[" * 20_000, "is not JSON", id="deep"),
    ],
)
def test_a_line_that_is_no_record_is_named(run, line, said):
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + line + "\n")
    number = len(metrics.read_text().splitlines())
    with pytest.raises(Exception, match=f"metrics.jsonl:{number}: {said}"):
        read_run(run)


def test_metadata_without_sense_is_passed_over(run):
    from detrkit.runs.checkpoint import read_weights, save_weights

    for which in ("last", "best"):
        path = run / which / "ema.safetensors"
        tensors, metadata = read_weights(path)
        path.unlink()
        damaged = {"recipe": "a = [\n[[", "categories": "7", "classes": "9" * 6000, "step": "-", "mean": "[]"}
        save_weights(tensors, path, metadata | damaged)
    trained = open_trained(str(run), [])
    assert trained.step is None
    assert "cannot be used, so" in trained.notes[0]
