"""`detrkit export` as a person calls it, and the file as `detrkit predict` and `detrkit.load` take it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.data.square import SquareAugment
from detrkit.data.transforms import DetrAugment, NoAugment
from detrkit.errors import CheckpointError, UserError
from tests.output.test_cli_output import call, run  # noqa: F401  (the fixture)
from tests.test_docs import snippets

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def without_bfloat16(monkeypatch):
    """A run's precision is chosen by what was measured, which what else the machine does decides too."""
    monkeypatch.setattr("detrkit.evaluation.precision.bf16_gain", lambda: 1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a", (48, 64)), ("b", (80, 60)), ("c", (64, 64))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def file(run, photos, tmp_path_factory):  # noqa: F811
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    result = call("export", run, "--out", path, "--check", photos)
    assert result.exit_code == 0, result.output
    assert "images, mask, sizes to scores, labels, boxes, queries, points" in result.output
    assert "3 images" in result.output
    return path


def test_the_file_finds_what_the_run_finds(file, run, photos, tmp_path):  # noqa: F811
    rows = {}
    for name, target in (("run", run), ("file", file)):
        call("predict", target, photos, "--out", tmp_path / name, "--threshold", 0.001, "--points", "--device", "cpu")
        rows[name] = json.loads((tmp_path / name / "predictions.json").read_text())
    assert len(rows["run"]) == len(rows["file"]) > 0
    for mine, theirs in zip(rows["run"], rows["file"], strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
    names = [(tmp_path / name / "images.json").read_text() for name in rows]
    assert names[0] == names[1]
    for name in ("a.png", "b.png", "c.png"):
        assert Image.open(tmp_path / "file" / name).size == Image.open(tmp_path / "run" / name).size


def test_load_takes_the_file(file, run, photos):  # noqa: F811
    ours, theirs = detrkit.load(run, device="cpu"), detrkit.load(file)
    assert theirs.classes == ours.classes
    assert repr(theirs) == repr(ours)
    assert theirs.recipe is None
    for one, other in zip(ours.predict(photos, threshold=0.0), theirs.predict(photos, threshold=0.0), strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-5)
        assert torch.allclose(one.scores.sum(), other.scores.sum(), atol=1e-4)
        assert other.points.shape == one.points.shape
    assert theirs.predict(photos / "a.png", threshold=0.0).draw(points=True).width >= 64


@pytest.fixture(scope="module")
def program(file):
    """What docs/export.md has for programs without detrkit, run on the file."""
    pytest.importorskip("onnxruntime")
    names = {}
    exec(snippets("Without detrkit", "docs/export.md")[0].replace("detector.onnx", str(file)), names)
    return names


def test_a_program_without_detrkit_finds_what_the_file_and_the_run_find(program, file, run, photos, tmp_path):  # noqa: F811
    large = Image.open(photos / "a.png").resize((1501, 1000))
    large.save(tmp_path / "large.png")
    (exif := Image.Exif())[0x112] = 6
    Image.open(photos / "b.png").save(tmp_path / "turned.jpg", exif=exif)
    for path in (*sorted(photos.iterdir()), tmp_path / "large.png", tmp_path / "turned.jpg"):
        found = list(program["detect"](path, threshold=0.0))
        for one in (detrkit.load(file), detrkit.load(run, device="cpu", precision="fp32")):
            theirs = one.predict(path, threshold=0.0)
            assert len(found) == len(theirs) > 0
            assert [score for _, score, _ in found] == pytest.approx(theirs.scores.tolist(), abs=1e-5)
            assert torch.allclose(torch.tensor(found[0][2]), theirs.boxes[0], atol=0.05)
        assert [name for name, _, _ in found][:3] == list(detrkit.load(file).predict(path, threshold=0.0).names)[:3]


@pytest.mark.parametrize(
    "augment", [NoAugment(max_size=500), DetrAugment(eval_size=480, eval_max_size=800), SquareAugment(eval_size=320)]
)
def test_a_program_without_detrkit_resizes_as_detrkit_does(program, augment):
    keys = ("eval_size", "eval_max_size", "max_size")
    names = {NoAugment: "none", DetrAugment: "detr", SquareAugment: "square"}
    resize = {key: getattr(augment, key) for key in keys if hasattr(augment, key)} | {"type": names[type(augment)]}
    program["resize"].clear()
    program["resize"].update(resize)
    for width, height in ((640, 480), (480, 640), (333, 333), (800, 600), (2, 3001), (1999, 7), (1, 1), (1023, 479)):
        assert program["resized"](width, height) == augment.evaluate(Image.new("RGB", (width, height))).size


def test_the_file_tells_what_it_wants(file):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    said = json.loads({one.key: one.value for one in model.metadata_props}["detrkit"])
    assert said["categories"][0] == {"id": 1, "name": "circle"}
    assert said["form"] == {"pixels": "uint8", "mask": True, "detections": True}
    assert said["mean"] == [0.485, 0.456, 0.406]
    assert said["resize"]["type"] == "flip"
    axes = {one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim] for one in model.graph.input}
    assert axes == {
        "images": ["batch", 3, "height", "width"],
        "mask": ["batch", "height", "width"],
        "sizes": ["batch", 2],
    }


def test_what_does_not_go_with_a_file_is_refused(file, run, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="has weights and options of its own"):
        detrkit.load(file, which="best")
    with pytest.raises(UserError, match="has weights and options of its own"):
        detrkit.load(file, ["detect.keep=3"])
    with pytest.raises(CheckpointError, match=r"gone\.onnx: there is no such file"):
        detrkit.load(tmp_path / "gone.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="cannot be opened by onnxruntime"):
        detrkit.load(tmp_path / "broken.onnx")
    with pytest.raises(UserError, match=r"ends in \.onnx, \.pt2, \.xml"):
        call("export", run, "--out", tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"a file of openvino ends in \.xml"):
        call("export", run, "--out", tmp_path / "a.onnx", "--format", "openvino")


def test_a_file_that_differs_fails_the_check(run, photos, tmp_path, monkeypatch):  # noqa: F811
    """Another detector's numbers in place of the file's."""
    from detrkit.export import check, writing

    monkeypatch.setattr(writing, "write", lambda form, card, path, kind: path.write_bytes(b""))
    monkeypatch.setattr("detrkit.export.loading.open_written", lambda path, card: Shifted(card))

    class Shifted:
        def __init__(self, card):
            self.card = card

        def detect(self, images, mask, sizes):
            return [{**one, "boxes": one["boxes"] + 3} for one in detector.detect(images, mask, sizes)]

    detector = detrkit.load(run, device="cpu").detector
    assert check.NONE.within(0)
    result = call("export", run, "--out", tmp_path / "a.pt2", "--check", photos)
    assert result.exit_code == 1
    assert "does not compute what PyTorch does" in result.output
    assert call("export", run, "--out", tmp_path / "a.pt2", "--check", photos, "--tolerance", 0.1).exit_code == 0


def test_a_tolerance_without_a_check_is_refused(tmp_path):
    with pytest.raises(UserError, match="--tolerance goes with --check"):
        call("export", "runs/x", "--out", tmp_path / "a.onnx", "--tolerance", 0.1)


def test_what_a_check_lacks_is_said_before_the_export(run, photos, tmp_path, monkeypatch):  # noqa: F811
    for module in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="the package onnxruntime is not installed"):
        call("export", run, "--out", tmp_path / "a.onnx", "--check", photos)
    assert not list(tmp_path.iterdir())


def test_endings_in_capitals(file, run, photos, tmp_path):  # noqa: F811
    capitals = tmp_path / "SMALL.ONNX"
    capitals.write_bytes(file.read_bytes())
    assert len(detrkit.load(capitals).predict(photos, threshold=0.0)) == 3
    with pytest.raises(UserError, match="can run code that the file carries"):
        detrkit.load(tmp_path / "A.PT2")
    with pytest.raises(UserError, match=r"a file of openvino ends in \.xml"):
        call("export", run, "--out", capitals, "--format", "openvino")


def test_onnx_runs_in_float32_alone(file):
    with pytest.raises(UserError, match=r"precision is 'bf16', which .* cannot run in; accepted: fp32"):
        detrkit.load(file, precision="bf16")


TWO_FILES = """
import faulthandler, os, signal, sys
import detrkit
faulthandler.enable()  # gives the thread a stack for its signals, as pytest does
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
first, second = detrkit.load(sys.argv[1]), detrkit.load(sys.argv[1])
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_arrive_after_two_openvino_files_were_closed(run, tmp_path):  # noqa: F811
    pytest.importorskip("openvino")
    call("export", run, "--out", tmp_path / "small.xml")
    command = [sys.executable, "-c", TWO_FILES, tmp_path / "small.xml"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "heard\n"


def test_an_openvino_file_in_capitals(run, photos, tmp_path):  # noqa: F811
    pytest.importorskip("openvino")
    call("export", run, "--out", tmp_path / "SMALL.XML")
    (tmp_path / "SMALL.bin").rename(tmp_path / "SMALL.BIN")
    assert len(detrkit.load(tmp_path / "SMALL.XML").predict(photos, threshold=0.0)) == 3


def test_openvino_computes_in_bfloat16_where_it_is_asked_to(run, photos, tmp_path):  # noqa: F811
    pytest.importorskip("openvino")
    call("export", run, "--out", tmp_path / "small.xml")
    with pytest.raises(UserError, match="accepted: fp32, bf16"):
        detrkit.load(tmp_path / "small.xml", precision="fp16")
    plain, low = (detrkit.load(tmp_path / "small.xml", precision=precision) for precision in ("auto", "bf16"))
    for one, other in zip(plain.predict(photos, threshold=0.0), low.predict(photos, threshold=0.0), strict=True):
        assert (one.scores - other.scores).abs().max() < 0.02  # both best first
