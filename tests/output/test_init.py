"""`detrkit init`: a recipe out of a data set's own numbers, that loads, trains, and says why."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import detrkit
from detrkit.data.advice import advise
from detrkit.errors import DataError, UserError

from ..data.conftest import CATEGORIES, box_entry, coco, image_entry
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
    assert "320 would show them as 32 pixels" in advise(coco(folder).train, most=256).reasons["image size"]


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
    assert recipe.get("train.epochs") == 100
    assert detrkit.build_detector(recipe).limit.count == 40


def test_what_cannot_be_written_is_said_and_leaves_nothing(folder, tmp_path):
    call("init", tmp_path / "a", "--data", folder, "--scratch")
    with pytest.raises(UserError, match=r"recipe\.toml is there already"):
        call("init", tmp_path / "a", "--data", folder)
    with pytest.raises(UserError, match="keep one of them"):
        call("init", tmp_path / "b", "--data", folder, "--scratch", "--weights", "x.safetensors")
    with pytest.raises(UserError, match="there is no"):
        call("init", tmp_path / "b", "--data", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"queries\.grid"):
        call("init", tmp_path / "b", "--data", folder, "--extends", "quickstart_dab")
    assert not (tmp_path / "b" / "recipe.toml").exists()
