"""convert as a person calls it, on a small untrained detector under another code's names."""

import argparse
import json
import os

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import detrkit
from detrkit.data import Category
from detrkit.errors import CheckpointError, UserError
from detrkit.runs.checkpoint import read_weights, save_weights
from detrkit.zoo import Conversion, Fitted
from detrkit.zoo.classes import count_classes
from tests.output.test_cli_output import call, small_recipe

OFFICIAL = {  # the official class head of SAP-DETR: the first layer's own, then one that the others share
    f"class_embed.{layer}.layers.{depth}.{kind}": torch.zeros(*([out, 32] if kind == "weight" else [out]))
    for layer in range(2)
    for depth, out in ((0, 32), (1, 32), (2, 5))
    for kind in ("weight", "bias")
}


def test_classes_of_a_checkpoint_are_counted():
    assert count_classes(OFFICIAL, small_recipe(3)) == 5
    assert count_classes({"backbone.0.body.conv1.weight": torch.zeros(1)}, small_recipe(3)) is None


@pytest.fixture
def official(monkeypatch):
    """An official checkpoint's content. Its names are the detector's own: the naming has tests of its own."""
    state = detrkit.build_detector(small_recipe(91)).state_dict()
    monkeypatch.setattr("detrkit.zoo.fit", lambda weights, recipe, **_: Fitted(recipe, ()))
    monkeypatch.setattr("detrkit.zoo.match", lambda weights, recipe: Conversion(weights))
    return {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "args": argparse.Namespace(lr=1e-4)}


def test_convert(official, tmp_path):
    torch.save(official, tmp_path / "official.pth")
    (tmp_path / "small.toml").write_text(small_recipe(91).to_toml())
    weights = tmp_path / "new" / "weights.safetensors"
    result = call("convert", tmp_path / "official.pth", tmp_path / "small.toml", "-o", weights)
    assert result.exit_code == 0
    assert "decoder" in result.output
    assert os.listdir(weights.parent) == ["weights.safetensors"]
    with safe_open(weights, framework="pt") as file:
        assert len(file.keys()) == len(official["model"])
        assert json.loads(file.metadata()["categories"])[1] == {"id": 1, "name": "person"}
    # The converted file is all that predict needs, names included.
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    drawn = tmp_path / "drawn"
    call("predict", tmp_path / "small.toml", tmp_path / "a.png", "--weights", weights, "--out", drawn, "--threshold", 0)
    categories = json.loads((drawn / "images.json").read_text())["categories"]
    assert Category(**categories[90]) == Category(90, "toothbrush")
    used = {row["category_id"] for row in json.loads((drawn / "predictions.json").read_text())}
    assert not used & {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # slots without a category


def test_a_config_of_another_model_beside_an_official_checkpoint_names_no_classes(official, tmp_path):
    """Downloads lie together: an image classifier's names would be taken for the detector's."""
    torch.save(official, tmp_path / "official.pth")
    (tmp_path / "small.toml").write_text(small_recipe(91).to_toml())
    said = {"model_type": "vit", "id2label": {str(label): f"fish {label}" for label in range(1000)}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.5}')
    weights = tmp_path / "w.safetensors"
    result = call("convert", tmp_path / "official.pth", tmp_path / "small.toml", "-o", weights)
    assert "config.json is of a vit, so it is not used" in result.output.replace("\n", " ")
    metadata = read_weights(weights)[1]
    assert json.loads(metadata["categories"])[1] == {"id": 1, "name": "person"}
    assert "mean" not in metadata


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_convert_refuses_code(official, tmp_path):
    official["optimizer"] = Malicious(tmp_path / "was here")
    torch.save(official, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        call("convert", tmp_path / "official.pth", "base/sap_detr", "-o", tmp_path / "w.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official.pth"]


def test_convert_says_what_does_not_fit(tmp_path):
    save_weights({"class_embed.0.layers.2.bias": torch.zeros(5)}, tmp_path / "a.safetensors", {})
    (tmp_path / "small.toml").write_text(small_recipe(91).to_toml())
    with pytest.raises(CheckpointError, match=r"(?s)does not fit small.*missing in the checkpoint"):
        call("convert", tmp_path / "a.safetensors", tmp_path / "small.toml", "-o", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()
    with pytest.raises(UserError, match=r"name a file with that ending"):
        call("convert", tmp_path / "a.safetensors", tmp_path / "small.toml", "-o", tmp_path / "w.pth")
