import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from detrkit.backbones.base import Backbone
from detrkit.engine.transfer import init_from
from detrkit.errors import CheckpointError
from detrkit.pixels import MEAN, STD
from detrkit.runs import checkpoint
from detrkit.runs.checkpoint import (
    find_folder,
    load_exactly,
    metadata_number,
    pixels_metadata,
    read_state,
    read_weights,
    write_checkpoint,
)
from detrkit.runs.state import read_trainer_state
from tests.engine.toys import ToyDetector


def write(folder, value, **parts):
    whole = {"weights": {"a": torch.full((3,), value)}, "average": None, "state": {"step": value}, "metadata": {}}
    write_checkpoint(folder, **{**whole, **parts})


def stored(folder):
    folder = find_folder(folder)
    return read_weights(folder / "weights.safetensors")[0]["a"][0].item(), read_state(folder)["step"]


def test_round_trip(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    weights = {"a": shared, "b": shared, "c": shared.t(), "n": torch.tensor(3), "h": torch.ones(2).bfloat16()}
    write(tmp_path / "last", 1.0, weights=weights, average={"a": shared + 1}, metadata={"step": "7"})
    found, metadata = read_weights(tmp_path / "last" / "weights.safetensors")
    assert metadata == {"step": "7"}
    assert all(torch.equal(found[name], weights[name]) and found[name].dtype == weights[name].dtype for name in weights)
    assert torch.equal(read_weights(tmp_path / "last" / "ema.safetensors")[0]["a"], shared + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("place", ["save_file", "torch.save", "os.fsync", "first rename", "second rename"])
def test_a_kill_leaves_a_whole_checkpoint(tmp_path, monkeypatch, place):
    folder = tmp_path / "last"
    write(folder, 1.0)
    child = os.fork()
    if child == 0:  # a real end without any clean-up, at the given place
        renames = iter(range(1, 3))
        wanted = {"first rename": 1, "second rename": 2}.get(place)

        def die(*arguments, **more):
            os._exit(9)

        def die_after_half(tensors, path, **more):
            path.write_bytes(b"half")
            os._exit(9)

        def rename(self, target):
            if next(renames) == wanted:
                os._exit(9)
            os.rename(self, target)

        if place == "save_file":
            checkpoint.save_file = die_after_half
        elif place == "torch.save":
            torch.save = die
        elif place == "os.fsync":
            os.fsync = die
        checkpoint.Path.rename = rename
        try:
            write(folder, 2.0)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert stored(folder) == (1.0, 1.0)
    write(folder, 3.0)
    assert stored(folder) == (3.0, 3.0)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_an_error_leaves_the_old_one(tmp_path):
    write(tmp_path / "last", 1.0)
    with pytest.raises(AttributeError):
        write(tmp_path / "last", 2.0, weights={"a": "no tensor"})
    assert stored(tmp_path / "last") == (1.0, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("should-not-exist",)


def test_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "last", 1.0)
    (tmp_path / "last" / "state.pt").unlink()
    torch.save({"format": 1, "evil": Evil()}, tmp_path / "last" / "state.pt")
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        read_state(tmp_path / "last")
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"not a .safetensors file.*can run code.*detrkit convert"):
        init_from(ToyDetector(), tmp_path / "weights.pth", classes=3)
    assert not (tmp_path / "should-not-exist").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_weights(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("content", [b"", bytes(5000), None])
def test_a_state_that_cannot_be_read_names_the_way_out(tmp_path, content):
    if content is not None:
        (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt.*train\.init_from=") as caught:
        read_trainer_state(tmp_path)
    assert "Do it only if" not in str(caught.value)  # torch advises to load what can run code


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        read_state(tmp_path)


def test_a_checkpoint_of_another_recipe(tmp_path):
    weights = ToyDetector(classes=5).state_dict()
    del weights["box.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_exactly(ToyDetector(classes=3), {**weights, "strange": torch.ones(1)}, tmp_path)
    message = str(caught.value)
    assert "box.bias is missing in the file" in message
    assert "strange is not part of the detector" in message
    assert "label.weight is [5, 8] in the file, [3, 8] in the detector" in message


def test_weights_of_another_code_are_told_from_another_recipe_s(tmp_path):
    theirs = {f"model.{name}": tensor for name, tensor in ToyDetector().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"none of this detector's names, but model\.backbone.*`detrkit convert`"):
        load_exactly(ToyDetector(), theirs, tmp_path)


CATEGORIES = '[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]'


def test_init_from_another_class_count(tmp_path):
    save_file(ToyDetector(classes=3, seed=1).state_dict(), tmp_path / "w.safetensors", {"categories": CATEGORIES})
    detector = ToyDetector(classes=7, seed=2)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    report = init_from(detector, tmp_path / "w.safetensors", classes=7)
    theirs = ToyDetector(classes=3, seed=1).state_dict()
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("label") else theirs[name])
    assert report.fresh == (
        "label.weight (class count: 3 rows in the file, 7 here)",
        "label.bias (class count: 3 rows in the file, 7 here)",
    )
    assert (report.loaded, report.total, report.unused) == (6, 8, ())
    assert "6 of 8 tensors" in str(report)


def test_init_from_a_detector_with_more_classes_than_its_data(tmp_path):
    metadata = {"categories": CATEGORIES, "classes": "5"}
    save_file(ToyDetector(classes=5, seed=1).state_dict(), tmp_path / "w.safetensors", metadata)
    report = init_from(ToyDetector(classes=2, seed=2), tmp_path / "w.safetensors", classes=2)
    assert report.fresh[0] == "label.weight (class count: 5 rows in the file, 2 here)"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["one", "two", "three"], ""),
        (["two", "one", "three"], "'one' for 'two', 'two' for 'one'"),
        (["one", "cell", "three"], "'two' for 'cell'"),
        ([], ""),
    ],
)
def test_init_from_says_whose_rows_other_classes_get(tmp_path, names, told):
    known = json.dumps([{"id": k, "name": name} for k, name in enumerate(("one", "two", "three"))])
    save_file(ToyDetector(seed=1).state_dict(), tmp_path / "w.safetensors", {"categories": known})
    report = init_from(ToyDetector(seed=2), tmp_path / "w.safetensors", classes=3, names=names)
    assert report.names.partition("names: ")[2] == told
    assert report.names in str(report)


def test_init_from_says_what_is_missing_and_what_is_not_used(tmp_path):
    weights = ToyDetector(seed=1).state_dict()
    del weights["norm.weight"]
    save_file({**weights, "other": torch.ones(2)}, tmp_path / "w.safetensors")
    report = init_from(ToyDetector(seed=2), tmp_path / "w.safetensors", classes=3)
    assert report.fresh == ("norm.weight (not in the file)",)
    assert report.unused == ("other",)


def test_init_from_weights_whose_images_were_normalised_otherwise_says_what_they_want(tmp_path):
    """As a converted checkpoint's or a run's with a mean of its own; the same numbers, or none, are no news."""
    detector = torch.nn.Module()
    detector.backbone, state = Backbone(), {"w": torch.ones(1)}
    detector.register_buffer("w", torch.zeros(1))
    for mean, told in (((0.5, 0.5, 0.5), True), (MEAN, False)):
        save_file(state, tmp_path / "w.safetensors", pixels_metadata(mean, STD))
        said = str(init_from(detector, tmp_path / "w.safetensors", classes=3))
        assert ("backbone.mean=[0.5,0.5,0.5] backbone.std=[0.229,0.224,0.225]" in said) == told
    save_file(state, tmp_path / "w.safetensors")
    assert init_from(detector, tmp_path / "w.safetensors", classes=3).pixels == ""


def test_init_from_another_kind_of_detector(tmp_path):
    wider = ToyDetector(seed=1).state_dict()
    wider["norm.weight"] = torch.ones(16)
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(CheckpointError, match=r"norm.weight is \[16\] there, \[8\] here"):
        init_from(ToyDetector(), tmp_path / "wider.safetensors", classes=3)
    broken = ToyDetector(seed=1).state_dict()
    broken["box.bias"][1] = float("nan")
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite, in box\.bias"):
        init_from(ToyDetector(), tmp_path / "broken.safetensors", classes=3)
    save_file({"layer1.weight": torch.ones(3)}, tmp_path / "strange.safetensors")
    with pytest.raises(CheckpointError, match=r"another kind of detector \(0 of the detector's 8 tensors fit\)"):
        init_from(ToyDetector(), tmp_path / "strange.safetensors", classes=3)


def test_metadata_of_another_program_says_no_number():
    assert metadata_number({"classes": "5"}, "classes") == 5
    for metadata in ({}, {"classes": "['cat', 'dog']"}, {"classes": "-1"}, {"classes": ""}):
        assert metadata_number(metadata, "classes") is None
