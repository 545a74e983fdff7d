"""`detrkit.load`: whatever an image is, the same numbers as the verb `predict`."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import detrkit
from detrkit.errors import DataError, UserError
from detrkit.evaluation import precision
from detrkit.pixels import MEAN
from detrkit.runs.checkpoint import parse_pixels, pixels_metadata, save_weights

from .test_cli_output import call, run  # noqa: F401  (the fixture)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a", (48, 64)), ("b", (80, 60)), ("c", (64, 64))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def predictor(run):  # noqa: F811
    return detrkit.load(run, device="cpu")


def test_a_folder_gives_what_the_verb_writes(predictor, run, photos, tmp_path):  # noqa: F811
    call("predict", run, photos, "--out", tmp_path, "--threshold", 0.01, "--device", "cpu")
    rows = json.loads((tmp_path / "predictions.json").read_text())
    found = predictor.predict(photos, threshold=0.01)
    assert [one.path.name for one in found] == ["a.png", "b.png", "c.png"]
    assert len(rows) == sum(map(len, found)) > 0
    at = 0
    for one in found:
        mine = rows[at : at + len(one)]
        at += len(one)
        assert [row["score"] for row in mine] == pytest.approx(one.scores.tolist(), abs=1e-4)
        assert [row["category_id"] for row in mine] == [label + 1 for label in one.labels.tolist()]
        x0, y0, x1, y1 = one.boxes.unbind(-1)
        boxes = torch.stack((x0, y0, x1 - x0, y1 - y0), dim=-1)
        assert torch.allclose(torch.tensor([row["bbox"] for row in mine]), boxes, atol=0.01)
        assert one.points.shape == (len(one), 2)
        assert one.names == tuple(predictor.classes[label] for label in one.labels.tolist())


def test_whatever_an_image_is(predictor, photos, monkeypatch):
    path = photos / "b.png"
    pixels = np.asarray(Image.open(path))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [path, str(path), Image.open(path), pixels, tensor, tensor.float() / 255]
    forms.append((tensor.float() / 255).requires_grad_())
    expected = predictor.predict(path, threshold=0.0)
    for form in forms:
        found = predictor.predict(form, threshold=0.0)
        assert torch.equal(found.scores, expected.scores), type(form)
        assert torch.equal(found.boxes, expected.boxes)
    monkeypatch.setenv("HOME", str(photos.parent))
    assert len(predictor.predict(f"~/{photos.name}")) == 3
    assert expected in [found, expected]
    assert expected not in {found}
    several = predictor.predict([photos / "b.png", photos], threshold=0.0, batch_size=1)
    assert len(several) == 4  # the file, and the folder's three
    assert torch.equal(several[0].scores, expected.scores)
    assert predictor.predict([], threshold=0.5) == []
    grey = predictor.predict(pixels[..., 0])
    assert grey.image.mode == "RGB"


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (3, "int is no image; accepted are a path"),
        (np.zeros((4, 4, 3)), r"an array should be .* of uint8, but is \[4, 4, 3\] of float64"),
        (np.zeros((4, 4, 4), dtype=np.uint8), "an array should be"),
        (torch.zeros(1, 3, 4, 4), r"one image \[3, H, W\], but is \[1, 3, 4, 4\]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"an array should be .* but is \[0, 4, 3\] of uint8"),
        (torch.zeros(3, 0, 4), r"one image \[3, H, W\], but is \[3, 0, 4\]"),
        (torch.full((3, 4, 4), -2.0), r"not normalised, but goes from -2 to -2"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "of uint8, or of floats"),
        ("nowhere.jpg", "nowhere.jpg: there is no such file"),
        ("", "a path is empty; . is the folder that you are in"),
        ("a" * 300, "a: File name too long. The name is longer than the file system takes"),
    ],
)
def test_what_is_no_image_is_told_what_is(predictor, odd, message):
    with pytest.raises(UserError, match=message):
        predictor.predict(odd)
    with pytest.raises(UserError, match=message):
        predictor.predict([odd])


def test_an_open_image_is_turned_upright_as_its_file_is(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    of_file, of_open = (
        predictor.predict(form, threshold=0.0) for form in (tmp_path / "a.png", Image.open(tmp_path / "a.png"))
    )
    assert of_open.image.size == of_file.image.size == (48, 80)
    assert torch.equal(of_open.boxes, of_file.boxes)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_open_image_without_pixels_is_told(predictor, size):
    with pytest.raises(DataError, match=f"an image in memory: has no pixels, being {size[0]} x {size[1]}"):
        predictor.predict(Image.new("RGB", size))


def test_an_open_image_of_a_broken_file_is_named(predictor, photos, tmp_path):
    (tmp_path / "cut.png").write_bytes((photos / "a.png").read_bytes()[:600])
    with pytest.raises(DataError, match=r"cut\.png: cannot be read as an image"):
        predictor.predict(Image.open(tmp_path / "cut.png"))
    with pytest.warns(UserWarning, match=r"cut\.png: cannot be read.*left out"):
        found = predictor.predict([Image.open(tmp_path / "cut.png"), photos / "a.png"], skip_unreadable=True)
    assert [one.path.name for one in found] == ["a.png"]


def test_a_broken_file_stops_or_is_left_out(predictor, photos, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [photos / "a.png", tmp_path / "bad.png", photos / "c.png"]
    with pytest.raises(DataError, match=r"bad\.png: cannot be read"):
        predictor.predict(files)
    with pytest.warns(UserWarning, match=r"bad\.png.*left out"):
        assert [one.path.name for one in predictor.predict(files, skip_unreadable=True)] == ["a.png", "c.png"]
    with pytest.raises(DataError):
        predictor.predict(tmp_path / "bad.png", skip_unreadable=True)  # nothing would be left to return
    with pytest.raises(UserError, match="threshold is 30"):
        predictor.predict(files, threshold=30)
    with pytest.raises(UserError, match="batch_size is 0"):
        predictor.predict(files, batch_size=0)


def test_what_was_found_is_drawn_and_handed_on(predictor, photos):
    found = predictor.predict(photos / "a.png", threshold=0.0)
    drawn = found.draw(points=True)
    assert drawn.width * found.image.height == drawn.height * found.image.width  # enlarged, as it is small
    plain = found.image.resize(drawn.size)
    assert (np.asarray(drawn) != np.asarray(plain)).any()
    supervision = pytest.importorskip("supervision")
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert np.allclose(detections.xyxy, found.boxes.numpy())
    assert detections.data["class_name"].tolist() == list(found.names)


def test_a_recipe_with_weights_and_the_other_checkpoint(run):  # noqa: F811
    weights = run / "last" / "weights.safetensors"
    predictor = detrkit.load(run / "recipe.toml", weights=weights, device="cpu")
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    assert torch.equal(
        predictor.predict(image, threshold=0).scores,
        detrkit.load(str(run), which="last", device="cpu").predict(image, threshold=0).scores,
    )
    assert "8 classes, cpu" in repr(predictor)
    with pytest.raises(UserError, match="name its weights"):
        detrkit.load("quickstart")


def test_a_project_is_a_recipe_for_weights_and_a_run_is_none(run, tmp_path):  # noqa: F811
    weights = run / "last" / "weights.safetensors"
    (tmp_path / "recipe.toml").write_text((run / "recipe.toml").read_text())
    assert "8 classes" in repr(detrkit.load(tmp_path, weights=weights, device="cpu"))
    for target in (run, run / "last"):
        with pytest.raises(UserError, match="is a run, which has weights of its own"):
            detrkit.load(target, weights=weights)


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda", "quantum"])
def test_a_device_that_is_not_there_is_refused(run, device):  # noqa: F811
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=rf"device is '{device}'.*accepted"):
        detrkit.load(run, device=device)


@pytest.mark.parametrize("classes", [2, 8, 9])
def test_a_data_set_with_another_number_of_classes_names_none(classes, tmp_path):
    """Weights without names, as of an official checkpoint of one's own: the data set that is there may be another."""
    recipe = detrkit.load_recipe("quickstart", [f"detector.classes={classes}"])
    save_weights(detrkit.build_detector(recipe).state_dict(), tmp_path / "w.safetensors", {"classes": str(classes)})
    names = detrkit.load("quickstart", weights=tmp_path / "w.safetensors", device="cpu").classes
    assert len(names) == classes
    assert names[:2] == (("circle", "square") if classes == 8 else ("class 0", "class 1"))


def test_the_precision_is_the_recipe_s_as_of_the_verb(run, monkeypatch):  # noqa: F811
    """A run may have been trained in bf16 on another machine; `detrkit predict` takes no values of a recipe."""
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    monkeypatch.setattr(precision, "bf16_gain", lambda: 2.0)
    assert detrkit.load(run, ["train.precision=fp32"], device="cpu").precision == "fp32"
    assert detrkit.load(run, ["train.precision=auto"], device="cpu").precision == "bf16"
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    for half in ("bf16", "fp16"):
        with pytest.warns(
            UserWarning, match=f"trained in {half}, which cpu here has not: detections are computed in fp32"
        ):
            assert detrkit.load(run, [f"train.precision={half}"], device="cpu").precision == "fp32"
    with pytest.raises(UserError, match="precision is 'bf16', which needs"):
        detrkit.load(run, precision="bf16", device="cpu")


def test_mean_and_deviation_are_those_that_the_weights_were_trained_with(run, tmp_path):  # noqa: F811
    """Whatever timm says of the model by then, and unless the recipe says others."""
    weights = tmp_path / "w.safetensors"
    state = load_file(run / "last" / "weights.safetensors")
    save_weights(state, weights, {"classes": "8", **pixels_metadata((0.5, 0.4, 0.3), (0.1, 0.2, 0.25))})
    predictor = detrkit.load(run / "recipe.toml", weights=weights, device="cpu")
    assert predictor.detector.backbone.mean == (0.5, 0.4, 0.3)
    assert predictor.detector.backbone.std == (0.1, 0.2, 0.25)
    said = ["backbone.mean=[0.1,0.1,0.1]"]
    told = detrkit.load(run / "recipe.toml", said, weights=weights, device="cpu").detector.backbone
    assert (told.mean, told.std) == ((0.1, 0.1, 0.1), (0.1, 0.2, 0.25))
    assert detrkit.load(run, device="cpu").detector.backbone.mean == MEAN  # nothing noted: timm's word
    assert parse_pixels({"mean": "[0.5, 0.5]", "std": "[1.0, 1.0, 1.0]"}) == {}
    assert parse_pixels({"mean": "x"}) == {}


def test_a_predictor_goes_to_another_process(predictor, photos):
    """As pools and data loaders send it, recipe and all."""
    again = pickle.loads(pickle.dumps(predictor))
    assert again.recipe == predictor.recipe
    assert torch.equal(
        again.predict(photos / "a.png", threshold=0).boxes, predictor.predict(photos / "a.png", threshold=0).boxes
    )
