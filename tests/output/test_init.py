"""`detrkit init`: a recipe out of a data set's own numbers, that loads, trains, and says why."""

from __future__ import annotations

import json
import os
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import detrkit
from detrkit.cli.init import recipe_text
from detrkit.data.advice import MINUTES, advise, advise_length, advise_pieces
from detrkit.data.auto_source import AutoSource
from detrkit.data.transforms import NoAugment
from detrkit.engine.trial import Trial, free_memory, try_step
from detrkit.errors import DataError, UserError
from detrkit.recipe.library import find_recipe

from ..data.conftest import CATEGORIES, box_entry, coco, image_entry, part
from .test_cli_output import call


@pytest.fixture
def folder(tmp_path):
    """Twelve images of 640 x 480 with six objects of a tenth of the shorter side each, and two empty ones."""
    root = tmp_path / "things"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        images = [image_entry(n, height=480, width=640) for n in range(1, 15)]
        boxes = [
            box_entry(10 * n + k, n, [50.0 * k, 30.0 * k, 48.0, 48.0], category=3 + 4 * (k % 2))
            for n in range(1, 13)
            for k in range(6)
        ]
        for entry in images:
            Image.fromarray(np.full((480, 640, 3), 9 * entry["id"], dtype=np.uint8)).save(
                root / split / entry["file_name"]
            )
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": boxes, "categories": CATEGORIES}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_the_sizes_follow_from_the_data(folder):
    advice = advise(coco(folder).train, most=384)
    assert advice.short == 320  # a tenth of it is 32 pixels
    assert advice.longest == 544
    assert np.prod(advice.grid) >= 36
    assert advice.grid == (5, 8)
    assert "10.0 % of the image's shorter side, 32 pixels here" in advice.reasons["image size"]
    assert advise(coco(folder).train, most=256).short == 240
    assert advise(coco(folder).train, most=64).short == 64  # less than the smallest that is chosen otherwise
    assert "320 would show them as 32 pixels" in advise(coco(folder).train, most=256).reasons["image size"]


def test_names_with_line_breaks_stay_in_their_comment(folder):
    for split in ("train", "val"):
        file = folder / "annotations" / f"instances_{split}.json"
        odd = [{"id": 3, "name": "cat\n[train]\nepochs = 1"}, {"id": 7, "name": "a\x01b"}]
        file.write_text(json.dumps({**json.loads(file.read_text()), "categories": odd}))
    moved = folder.rename(folder.with_name("a\nthing"))
    source = AutoSource(root=str(moved), augment=part(NoAugment))
    options = {"data": moved, "extends": "finetune", "model": (None, None, True)}
    text = recipe_text(source, advise(source.train, most=384), advise_length(12, 2, seconds=None), 4, **options)
    said = tomllib.loads(text)
    assert said["data"]["root"] == str(moved.resolve())
    assert said["train"]["epochs"] > 1


def test_a_set_without_objects_is_refused(folder):
    file = folder / "annotations" / "instances_train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(DataError, match="hold no objects"):
        advise(coco(folder).train, most=384)


def test_the_recipe_loads_and_builds_a_detector_for_the_data(folder, tmp_path):
    result = call("init", tmp_path / "mine", "--data", folder, "--scratch", "--backbone", "test_resnet")
    assert "14 training images, 14 for validation, 2 classes" in result.output
    assert "next: " in result.output
    recipe = detrkit.load_recipe(tmp_path / "mine")
    text = (tmp_path / "mine" / "recipe.toml").read_text()
    assert "Classes: cat, dog." in text
    assert text.count("\n") < 45
    source = recipe.section("data")()
    assert (len(source.train), [c.name for c in source.categories]) == (14, ["cat", "dog"])
    assert recipe.get("queries.grid") == (5, 8)
    assert recipe.get("backbone.pretrained") is False
    assert recipe.get("train.epochs") == 100  # this detector is fast
    assert recipe.get("train.batch_size") == 4
    assert "\n100 epochs: about " in result.output
    assert "\nbatch of 4: the preset's learning rate belongs to this batch; 4 at once take about" in result.output
    assert detrkit.build_detector(recipe).limit.count == 40


def test_a_recipe_is_titled_after_the_folder_of_the_data(folder, tmp_path):
    copy = tmp_path / "cells.v3-raw"
    assert call("check-data", folder, "--save-as", "yolo", "--out", copy, "--no-files").exit_code == 0
    for number, data in enumerate((copy, copy / "data.yaml")):
        call("init", tmp_path / str(number), "--data", data, "--scratch", "--backbone", "test_resnet")
        assert detrkit.load_recipe(tmp_path / str(number)).title == "A detector for cells.v3-raw"


def test_what_cannot_be_written_is_said_and_leaves_nothing(folder, tmp_path):
    call("init", tmp_path / "a", "--data", folder, "--scratch", "--backbone", "test_resnet")
    with pytest.raises(UserError, match=r"recipe\.toml is there already"):
        call("init", tmp_path / "a", "--data", folder)
    with pytest.raises(UserError, match="keep one of them"):
        call("init", tmp_path / "b", "--data", folder, "--scratch", "--weights", "x.safetensors")
    with pytest.raises(UserError, match="there is no"):
        call("init", tmp_path / "b", "--data", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"queries\.grid"):
        call("init", tmp_path / "b", "--data", folder, "--extends", "quickstart_dab")
    with pytest.raises(UserError, match="no_such_model"):
        call("init", tmp_path / "b", "--data", folder, "--scratch", "--backbone", "no_such_model")
    small = ["--data", folder, "--backbone", "test_resnet"]
    with pytest.raises(UserError, match=r"nowhere\.safetensors: there is no such file"):
        call("init", tmp_path / "b", *small, "--weights", tmp_path / "nowhere.safetensors")
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"backbone\.weights = .*other\.safetensors"):
        call("init", tmp_path / "b", *small, "--weights", tmp_path / "other.safetensors")
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="no_such_model"):
        call("init", tmp_path / "c" / "d", "--data", folder, "--scratch", "--backbone", "no_such_model")
    assert not (tmp_path / "c").exists()
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="no_such_model"):
        call("init", tmp_path / "e", "--data", folder, "--scratch", "--backbone", "no_such_model")
    assert not list((tmp_path / "e").iterdir())


def test_an_interruption_leaves_nothing(folder, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("detrkit.engine.trial.try_step", interrupted)
    call("init", tmp_path / "mine", "--data", folder, "--scratch", "--backbone", "test_resnet")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("images", "val", "seconds", "epochs", "minutes"),
    [
        (200, 90, None, 50, None),  # 2500 steps of 4
        (500, 90, None, 20, None),
        (9000, 90, None, 12, None),
        (200, 90, 1 / 100, 50, 2),  # a fast CPU does no more
        (200, 90, 1 / 4, 36, 34),  # 36 * 200 and 36 * 90 / 3 images at 4 a second
        (9000, 0, 1 / 4, 1, 38),  # one epoch there is in any case
    ],
)
def test_the_length_is_in_steps_on_a_gpu_and_in_minutes_on_a_cpu(images, val, seconds, epochs, minutes):
    length = advise_length(images, val, seconds=seconds)
    assert length.epochs == epochs
    if minutes is None:
        assert length.reason.startswith("2500 steps of 4 images")
        return
    spent = (epochs * images + -(-epochs // length.evaluate_every) * val / 3) * seconds / 60
    assert round(spent) == minutes
    assert length.reason.startswith(f"about {minutes} minutes at the {1 / seconds:.2g} images/s")
    assert ("would be better and take" in length.reason) == (spent > 5)
    assert spent <= MINUTES or epochs == 1


@pytest.mark.parametrize(
    ("free", "at_once", "said"),
    [
        (None, 4, "belongs to this batch"),
        (8e9, 4, "; 4 at once take about 0.8 of the 8.0 GB that are free"),
        (1e9, 2, "; 2 at once take about 0.4 of the 1.0 GB that are free"),
        (1e8, 1, "which may be too much: try a smaller --most"),
    ],
)
def test_what_memory_does_not_hold_is_taken_in_pieces(free, at_once, said):
    found, reason = advise_pieces(0.1e9, free)
    assert found == at_once
    assert reason.endswith(said)


def test_a_step_is_tried_on_the_data_itself(folder, tmp_path, monkeypatch):
    """Twice the pixels keep about twice the bytes; and what was found stands in the recipe."""
    tried = []

    def small(recipe, source, *, batch_size):
        tried.append(try_step(recipe, source, batch_size=batch_size))
        return Trial(seconds=10.0, kept=0.1e9)

    monkeypatch.setattr("detrkit.engine.trial.try_step", small)
    monkeypatch.setattr("detrkit.engine.trial.free_memory", lambda device: 0.6e9)
    given = ("--data", folder, "--scratch", "--backbone", "test_resnet", "--most")
    said = call("init", tmp_path / "one", *given, 240).output
    call("init", tmp_path / "two", *given, 320)
    assert 1.4 < tried[1].kept / tried[0].kept < 2.3  # (320 / 240)^2 = 1.78, and rounding to whole cells
    assert tried[0].kept > 4 * 3 * 240 * 320  # more than the pixels themselves
    assert 0 < tried[0].seconds < 10
    recipe = detrkit.load_recipe(tmp_path / "one")
    assert (recipe.get("train.batch_size"), recipe.get("train.micro_batch")) == (4, 2)
    assert recipe.get("train.epochs") == 11
    assert "11 epochs: about 34 minutes at the 0.1 images/s that this CPU trains" in said
    assert "2 at once take about 0.4 of the 0.6 GB" in said


def test_an_image_that_cannot_be_read_leaves_the_usual_length(folder, tmp_path):
    for file in (folder / "train").iterdir():
        file.write_bytes(b"no image")
    result = call("init", tmp_path / "mine", "--data", folder, "--scratch", "--backbone", "test_resnet")
    assert "no step could be tried: " in result.output
    assert "100 epochs: 2500 steps of 4 images" in result.output
    assert detrkit.load_recipe(tmp_path / "mine").get("train.epochs") == 100


def test_free_memory_is_less_than_there_is():
    free = free_memory(torch.device("cpu"))
    assert free is None or 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_project_is_trained_by_its_folder_s_name(folder, tmp_path, monkeypatch):
    """A folder with a recipe in it is no run yet, and its run is called as it is."""
    monkeypatch.chdir(tmp_path)
    call("init", tmp_path / "mine", "--data", folder, "--scratch", "--backbone", "test_resnet")
    small = ("train.epochs=1", "train.workers=0", "train.device=cpu", "evaluate.pictures=0", "data.augment.scales=[64]")
    small += ("data.augment.eval_size=64",)
    for given, run in (("mine", "runs/mine"), ("mine/recipe.toml", "runs/mine-2")):
        assert call("train", given, *small).exit_code == 0
        with pytest.raises(UserError, match=rf"{run} is a run\. Go on with it"):
            call("train", run)


def test_a_preset_is_looked_for_where_the_person_stands(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.toml").write_text('extends = "finetune"\nimports = ["part.py"]\ntrain.clip_norm = 0.3\n')
    (tmp_path / "presets/part.py").write_text("")
    given = ("--data", folder, "--scratch", "--backbone", "test_resnet", "--extends")
    for number, preset in enumerate(("presets/mine.toml", "presets/mine")):
        with pytest.raises(UserError, match=r"presets/part\.py .*\n.*--trust"):
            call("init", f"new{number}", *given, preset)
        call("init", f"new{number}", *given, preset, "--trust")
        assert detrkit.load_recipe(f"new{number}", trust=True).get("train.clip_norm") == 0.3
    shipped = find_recipe("finetune")
    call("init", "shipped", *given, shipped)
    assert 'extends = "finetune"\n' in (tmp_path / "shipped/recipe.toml").read_text()
    with pytest.raises(UserError, match='no known recipe of that name; did you mean "finetune"'):
        call("init", "none", *given, "finetun")
    assert not (tmp_path / "none").exists()
