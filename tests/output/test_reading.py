import argparse
import json
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from detrkit.errors import CheckpointError
from detrkit.reading import read_checkpoint, read_json

WEIGHTS = {"encoder.weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def wrapped(prefix):
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "epoch": 49, "args": argparse.Namespace(lr=1e-4, dropout=0.0, names=["a"])},
        {"state_dict": wrapped("module.")},
        {"ema": {"module": WEIGHTS, "updates": 7}, "optimizer": {"state": {}}},
        {"model": wrapped("module._orig_mod."), "ema_model": {}},
    ],
    ids=["plain", "with options", "state_dict", "ema", "compiled"],
)
def test_weights_are_found(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert same(read_checkpoint(tmp_path / "a.pth"), WEIGHTS)


def test_entry_can_be_chosen(tmp_path):
    torch.save({"model": {"other": torch.zeros(1)}, "ema": {"module": WEIGHTS}}, tmp_path / "a.pth")
    assert same(read_checkpoint(tmp_path / "a.pth", "ema"), WEIGHTS)
    with pytest.raises(CheckpointError, match="no entry 'best'; there are: model, ema"):
        read_checkpoint(tmp_path / "a.pth", "best")


def test_where_several_entries_have_weights_the_one_that_is_taken_is_told(tmp_path):
    """A training's own weights beside their average, which is what was published; an entry that is empty is none."""
    other = {"other": torch.zeros(1)}
    torch.save({"model": WEIGHTS, "ema": {"module": other}, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"a\.pth: the weights of its entry model are taken, .* others in ema$"):
        assert same(read_checkpoint(tmp_path / "a.pth"), WEIGHTS)
    torch.save({"model": {}, "state_dict": None, "ema": {"module": WEIGHTS}}, tmp_path / "b.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read_checkpoint(tmp_path / "a.pth", "ema"), other)
        assert same(read_checkpoint(tmp_path / "b.pth"), WEIGHTS)


@pytest.mark.parametrize(
    ("name", "average"),
    [
        ("state_dict_ema", WEIGHTS),  # timm
        ("ema_state_dict", wrapped("module.")),  # mmengine
        ("ema", {"shadow": WEIGHTS, "decay": 0.999}),
        ("teacher", {"net": {"weights": WEIGHTS}}),
    ],
)
def test_averages_under_any_name_are_told_and_can_be_taken(tmp_path, name, average):
    last = {one: tensor + 1 for one, tensor in WEIGHTS.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    torch.save({"state_dict": last, name: average, "optimizer": optimizer}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=rf"its entry state_dict are taken, and there are others in {name}$"):
        assert same(read_checkpoint(tmp_path / "a.pth"), last)
    assert same(read_checkpoint(tmp_path / "a.pth", name), WEIGHTS)


def test_a_format_is_told_by_what_stands_in_a_file(tmp_path):
    for name in ("a.pth", "A.SAFETENSORS", "a.bin", "a"):
        save_file(WEIGHTS, tmp_path / name)
        assert same(read_checkpoint(tmp_path / name), WEIGHTS)
    torch.save(WEIGHTS, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), WEIGHTS)


def test_the_mark_of_windows_before_a_text_is_passed_over(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "config.json") == {"a": 1}


def test_an_index_stands_for_its_pieces(tmp_path):
    places = {}
    for number, (name, tensor) in enumerate(WEIGHTS.items()):
        places[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, tmp_path / places[name])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert same(read_checkpoint(path), WEIGHTS)
    with pytest.raises(CheckpointError, match=r"b\.index\.json: there is no such file"):
        read_checkpoint(tmp_path / "b.index.json")


def test_safetensors_and_the_old_format(tmp_path):
    save_file(wrapped("module."), tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), WEIGHTS)
    torch.save({"model": WEIGHTS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "old.pth"), WEIGHTS)


def test_wrapper_is_kept_where_not_every_name_has_it(tmp_path):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(mixed, tmp_path / "a.pth")
    assert same(read_checkpoint(tmp_path / "a.pth"), mixed)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_is_refused_and_not_run(tmp_path, new_format):
    trace = tmp_path / "was here"
    content = {"model": WEIGHTS, "args": argparse.Namespace(hook=Malicious(trace))}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"refused: it asks for \w+\.mkdir, which could run code"):
        read_checkpoint(tmp_path / "a.pth")
    assert not trace.exists()
    pickle.loads(pickle.dumps(content["args"]))  # the test's pickle would have worked
    assert trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bare_pickle_is_refused(tmp_path):
    trace = tmp_path / "was here"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(CheckpointError, match=r"a\.pkl"):
        read_checkpoint(tmp_path / "a.pkl")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer"),
        (b"\x00\x01\x02 not a checkpoint", "cannot be read"),
    ],
)
def test_other_files(tmp_path, content, message):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} {message}") as caught:
            read_checkpoint(tmp_path / name)
        assert "weights_only" not in str(caught.value)  # no advice to load it unsafely


def test_cut_short(tmp_path):
    torch.save({"model": {"w": torch.randn(100, 100)}}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    assert zipfile.is_zipfile(tmp_path / "a.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "no weights where they usually are"),
        ({"epoch": 3, "weigths": WEIGHTS}, r"there are: epoch, weigths; name the one that holds them \(--entry"),
        ({"model": {"a": torch.ones(1), "config": "text"}}, "there are: a, config"),
    ],
)
def test_no_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.pth")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_checkpoint(tmp_path / "a.pth")
