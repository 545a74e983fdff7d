"""What is measured side by side: turns, ratios, the parts of a step, and the limit."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from detrkit.cli.app import app
from detrkit.compare.benchmark import (
    PARTS,
    Benchmark,
    Speed,
    Stopwatch,
    Subject,
    loaded_images,
    measure,
    of_recipe,
    runs_of,
)
from detrkit.compare.benchmark_sheets import benchmark_record, benchmark_sheets
from detrkit.compare.timing import Ratio, take_turns
from detrkit.errors import UserError
from detrkit.recipe import load_recipe

CPU = torch.device("cpu")
SMALL = {"device": CPU, "precision": "fp32", "height": 64, "width": 96}


def test_in_a_round_each_runs_once_and_the_warm_up_is_not_kept():
    order, told = [], []

    def run(name):
        order.append(name)
        return len(order)

    found = take_turns(
        {"a": lambda: run("a"), "b": lambda: run("b")}, rounds=2, warmup=1, progress=lambda: told.append(1)
    )
    assert order == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [4, 6]}
    assert len(told) == 6


def test_a_ratio_is_taken_round_by_round():
    slow_rounds = [1, 100, 2, 1, 10]  # the machine was busy, and both took longer
    ratio = Ratio.of([3.0 * s for s in slow_rounds], [2.0 * s for s in slow_rounds])
    assert (ratio.low, ratio.middle, ratio.high) == (1.5, 1.5, 1.5)
    assert Ratio.of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == Ratio(3.0, 2.0, 4.0)
    assert Ratio.of([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


def test_laps_of_one_part_add_up(monkeypatch):
    now = iter([0.0, 1.0, 1.5, 3.5])
    monkeypatch.setattr("detrkit.compare.benchmark.time.perf_counter", lambda: next(now))
    watch = Stopwatch(CPU)
    for part in ("losses", "matching", "losses"):
        watch.lap(part)
    assert watch.parts == {"forward": 0, "losses": 3000, "matching": 500, "backward": 0, "optimiser": 0}


def test_the_limit_is_the_work_at_the_machine_s_rate():
    speed = Speed("a", 5_000_000_000, detection={4: [100.0, 200.0, 300.0]})
    found = Benchmark([speed], 1e11, CPU, "fp32", 64, 64, 0, 3)
    assert found.limit(speed, 4) == 200
    assert found.share(speed, 4) == 1
    assert Benchmark([speed], 2e11, CPU, "fp32", 64, 64, 0, 3).share(speed, 4) == 0.5


@pytest.fixture(scope="module")
def measured():
    told = []
    recipes = {"quickstart": [], "faster_rcnn_r50_108ep": ["backbone.name=test_resnet", "detector.width=16"]}
    torch.manual_seed(0)
    subjects = [of_recipe(load_recipe(name, [*said, "detector.classes=4"]), **SMALL) for name, said in recipes.items()]
    found = measure(subjects, **SMALL, batches=(1, 2), step_batch=2, rounds=2, progress=lambda: told.append(1))
    return found, len(told)


def test_every_part_of_every_recipe_is_measured(measured):
    found, told = measured
    assert told == runs_of(2, 2, training=True, rounds=2, warmup=2)
    for speed in found.speeds:
        assert {batch: len(times) for batch, times in speed.detection.items()} == {1: 2, 2: 2}
        assert list(speed.step) == list(PARTS)
        assert all(min(speed.step[part]) > 0 for part in ("forward", "losses", "backward", "optimiser"))
        assert speed.steps == pytest.approx([sum(speed.step[part][i] for part in PARTS) for i in (0, 1)])
        assert speed.memory["detection of 2"] > speed.memory["detection of 1"] > 0
        assert speed.memory["training step"] > speed.memory["detection of 2"]
    sap, rcnn = found.speeds
    assert min(sap.step["matching"]) > 0
    assert max(rcnn.step["matching"]) == 0  # it has no matcher; its losses come out of its forward pass


def test_a_benchmark_is_a_table_for_each_thing_measured_and_a_record(measured):
    found, _ = measured
    titles = [sheet.title for sheet in benchmark_sheets(found)]
    assert titles == ["Detection, batch 1", "Detection, batch 2", "Training step, batch 2"]
    for sheet in benchmark_sheets(found):
        assert all(len(row) == len(sheet.columns) for row in sheet.rows)
        assert sheet.rows[0][2] == "1.00 (1.00-1.00)"
    record = json.loads(json.dumps(benchmark_record(found)))
    assert [row["name"] for row in record["rows"]] == ["quickstart", "faster_rcnn_r50_108ep"]
    assert record["rows"][1]["ratio_to_first"]["training step"]["middle"] > 0


def test_the_loader_is_measured_where_there_are_data(tmp_path):
    assert loaded_images(load_recipe("quickstart"), 2) > 0
    assert loaded_images(load_recipe("quickstart", ["data.type=coco", f"data.root={tmp_path}"]), 2) is None


def test_the_verb_writes_what_it_measured(tmp_path):
    out = tmp_path / "speed.json"
    asked = ["--size", "64x64", "--only", "detection", "--batch", "1", "--rounds", "2", "--out", str(out)]
    done = CliRunner().invoke(app, ["benchmark", "quickstart", *asked], catch_exceptions=False)
    assert "Detection, batch 1" in done.output
    assert "Training step" not in done.output
    assert len(json.loads(out.read_text())["rows"][0]["detection"]["1"]) == 2
    with pytest.raises(UserError, match="accepted are detection, training, loader"):
        CliRunner().invoke(app, ["benchmark", "quickstart", "--only", "speed"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--only", "training", "--batch", "4"], "--batch is of detection, which --only leaves out"),
        (["--only", "loader", "--size", "64x64"], "--size is of detection and training, which --only leaves out"),
        (["--only", "loader", "--rounds", "3"], "--rounds is of detection and training, which --only leaves out"),
        (["--only", "detection", "--step-batch", "4"], "--step-batch is of loader and training, which --only leaves"),
        (["--out", "."], "--out . is a folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(asked, message):
    with pytest.raises(UserError, match=re.escape(message)):
        CliRunner().invoke(app, ["benchmark", "quickstart", *asked], catch_exceptions=False)


def test_a_loader_that_cannot_be_measured_is_told(tmp_path):
    for said in (["data.type=coco", f"data.root={tmp_path}"], ["data.train_images=2"]):
        asked = ["benchmark", "quickstart", *said, "--only", "loader"]
        done = CliRunner().invoke(app, asked, catch_exceptions=False)
        assert "the loader is not measured: the data are not here, or are one batch at most" in done.output


def subject(name):
    return Subject(
        name, detect=lambda images: images, step=lambda images, truths, watch: watch.lap("forward"), classes=3
    )


def test_two_of_one_name_are_refused():
    with pytest.raises(UserError, match="two of the recipes are called a;"):
        measure([subject("a"), subject("b"), subject("a")], **SMALL, rounds=2)


def test_a_record_without_detection_is_json():
    found = measure([subject("a")], **SMALL, batches=(), step_batch=1, rounds=2)
    record = json.loads(json.dumps(benchmark_record(found), allow_nan=False))
    assert record["multiply_adds_per_second"] is None


@pytest.mark.parametrize(("device", "rows"), [("cpu", 2048), ("meta", 8192)])
def test_the_rate_is_that_of_matrices_which_take_longer_than_asking_for_them(monkeypatch, device, rows):
    """Those of 2048 take a GPU 20 microseconds: it would seem to have half of its rate, detectors twice their share."""
    sizes = []

    def timed(run, device):
        product = run()
        sizes.extend(product.shape if isinstance(product, torch.Tensor) else ())
        return 2.0

    monkeypatch.setattr("detrkit.compare.benchmark.milliseconds", timed)
    monkeypatch.setattr("detrkit.compare.benchmark.linear", lambda a, b: torch.empty(len(a), len(b), device="meta"))
    subject = Subject("none", lambda images: None, lambda images, truths, watch: None, classes=3)
    options = SMALL | {"device": torch.device(device)}
    found = measure([subject], **options, batches=(1,), step_batch=0, rounds=2)
    assert set(sizes) == {rows}
    assert found.rate == 500 * rows**3
