"""evaluate and predict as a person calls them, on a small untrained detector."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import detrkit
from detrkit.cli.app import app
from detrkit.errors import CheckpointError, UserError
from detrkit.runs.checkpoint import format_categories, read_weights, save_weights, write_checkpoint

SMALL = [
    'title="a tiny detector"',
    "backbone.name=resnet10t",
    "backbone.pretrained=false",
    "backbone.norm=batch",
    "backbone.frozen_stride=0",
    "detector.width=32",
    "detector.heads=2",
    "encoder.layers=1",
    "encoder.feedforward=32",
    "decoder.layers=2",
    "decoder.feedforward=32",
    "queries.grid=[3, 3]",
    "data.type=shapes",
    "data.image_size=64",
    "data.train_images=4",
    "data.val_images=3",
    "train.workers=0",
    "train.device=cpu",
]


def small_recipe(classes):
    return detrkit.load_recipe("base/sap_detr", [*SMALL, f"detector.classes={classes}"])


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder that was never trained."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    recipe = small_recipe(8)
    torch.manual_seed(0)
    detector = detrkit.build_detector(recipe)
    said = {"step": "120"}
    write_checkpoint(folder / "last", weights=detector.state_dict(), average=None, state={}, metadata=said)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    (folder / "categories.json").write_text(format_categories(recipe.section("data")().categories))
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(run, tmp_path, value):
    bad = shutil.copytree(run, tmp_path / "bad")
    path = bad / "last" / "weights.safetensors"
    weights, metadata = read_weights(path)
    name = next(iter(weights))
    weights[name] = weights[name].double()
    weights[name].view(-1)[-1] = value
    path.unlink()
    save_weights(weights, path, metadata)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for arguments in (
        ("evaluate", bad),
        ("evaluate", bad / "recipe.toml", "--weights", path, "--out", tmp_path),
        ("predict", bad, tmp_path / "a.png", "--out", tmp_path / "drawn"),
        ("show", bad, "val:1", "--out", tmp_path / "shown"),
        ("report", bad, "--out", tmp_path / "a.html"),
        ("export", bad, "--out", tmp_path / "a.pt2"),
    ):
        with pytest.raises(CheckpointError, match=f"weights.safetensors holds numbers that are not finite, in {name}"):
            call(*arguments)
    with pytest.raises(CheckpointError, match="not finite"):
        detrkit.load(bad)


def write_coco(folder, split, categories):
    """A split of one image with one box of the first category."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    Image.new("RGB", (64, 48), "white").save(folder / split / "a.png")
    box = {
        "id": 1,
        "image_id": 1,
        "category_id": categories[0]["id"],
        "bbox": [8, 8, 20, 20],
        "area": 400,
        "iscrowd": 0,
    }
    images = [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]
    content = {"images": images, "annotations": [box], "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def test_evaluate_a_run(run):
    result = call("evaluate", run, "evaluate.batch_size=2")
    assert result.output.startswith(f"{run / 'last' / 'weights.safetensors'} on cpu, val split, fp32")  # in one line
    assert "3 images" in result.output
    assert "crescent" in result.output
    summary = json.loads((run / "evaluation.json").read_text())
    assert set(summary["stats"]) >= {"AP", "AP50", "ARL"}
    assert summary["overrides"] == ["evaluate.batch_size=2"]
    assert (summary["target"], summary["step"]) == (str(run), 120)
    assert summary["title"] == "a tiny detector"
    assert (summary["device"], summary["precision"]) == ("cpu", "fp32")
    assert (summary["data"]["type"], summary["data"]["val_images"]) == ("shapes", 3)
    assert [row["name"] for row in summary["per_class"]][:2] == ["circle", "square"]
    detections = json.loads((run / "detections.json").read_text())
    assert {row["category_id"] for row in detections} <= set(range(1, 9))
    assert {row["image_id"] for row in detections} == {1, 2, 3}


def test_evaluate_the_training_images(run):
    """Each once and as they are, although training shuffles, drops and flips."""
    call("evaluate", run, "evaluate.batch_size=2", "data.augment.flip=1.0", "--split", "train")
    detections = json.loads((run / "detections_train.json").read_text())
    assert {row["image_id"] for row in detections} == {1, 2, 3, 4}
    call("evaluate", run, "data.augment.flip=0.0", "--split", "train")
    again = json.loads((run / "detections_train.json").read_text())
    assert [row["score"] for row in detections] == pytest.approx([row["score"] for row in again], abs=1e-5)


def test_evaluate_a_run_on_other_data_leaves_its_own_numbers(run, tmp_path):
    call("evaluate", run)
    before = {path.name: path.read_bytes() for path in run.glob("*.json")}
    shapes = detrkit.load_recipe("quickstart").section("data")().categories
    for split in ("train", "val"):
        write_coco(tmp_path / "other", split, [{"id": category.id, "name": category.name} for category in shapes])
    for other in (["--data", tmp_path / "other"], ["data.val_images=2"]):
        with pytest.raises(UserError, match="for other data name --out FOLDER"):
            call("evaluate", run, *other)
    call("evaluate", run, "--data", tmp_path / "other", "--out", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in run.glob("*.json")} == before
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())["data"]
    assert (data["type"], data["root"]) == ("auto", str(tmp_path / "other"))


def test_evaluate_a_recipe_with_weights(run, tmp_path):
    (tmp_path / "mine.toml").write_text((run / "recipe.toml").read_text())
    weights = run / "last" / "weights.safetensors"
    result = call("evaluate", tmp_path / "mine.toml", "--weights", weights, "--out", tmp_path / "there")
    assert "3 images" in result.output
    assert json.loads((tmp_path / "there" / "evaluation.json").read_text())["weights"] == str(weights)
    with pytest.raises(
        UserError, match=r"is not the folder of a run; for a recipe, name its weights .*in Python: weights="
    ):
        call("evaluate", tmp_path / "mine.toml")
    with pytest.raises(UserError, match=r"smal: there is no such run; did you mean .*small"):
        call("evaluate", run.parent / "smal")
    with pytest.raises(UserError, match="which has weights of its own"):
        call("evaluate", run, "--weights", weights)
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        call("evaluate", tmp_path / "mine.toml", "decoder.layers=3", "--weights", weights)


def test_evaluate_on_data_of_other_classes(run, tmp_path):
    write_coco(tmp_path, "val", [{"id": 1, "name": "circle"}, {"id": 2, "name": "cat"}])
    with pytest.raises(CheckpointError, match=r"class 1 is 'square' there and 'cat' here \(8 and 2 classes"):
        call("evaluate", run, "--data", tmp_path, "--out", tmp_path / "out")


def test_predict(run, tmp_path):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    Image.new("RGB", (80, 64), "orange").save(photos / "a.jpg")
    Image.new("RGB", (64, 100), "blue").save(photos / "more" / "b.bmp")
    Image.new("RGB", (64, 64), "green").save(photos / "more" / "b.bmp.png")
    (photos / "broken.png").write_bytes(b"no image")
    out = tmp_path / "drawn"
    result = call("predict", run, photos, "--out", out, "--points", "--threshold", 0)
    assert result.exit_code == 1
    assert "broken.png: cannot be read as an image" in result.output.replace("\n", " ")
    assert "1 of 4 files could not be read" in result.output
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert written == ["a.jpg", "images.json", "more/b.bmp-2.png", "more/b.bmp.png", "predictions.json"]
    assert Image.open(out / "a.jpg").size == (512, 410)  # enlarged to be read
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {1, 3, 4}  # the broken one is number 2
    assert all(len(row["bbox"]) == 4 and len(row["point"]) == 2 for row in rows)
    images = json.loads((out / "images.json").read_text())
    assert images["images"][0] == {"id": 1, "file_name": str(photos / "a.jpg"), "width": 80, "height": 64}
    assert {row["file_name"] for row in rows} == {row["file_name"] for row in images["images"]}
    # Drawings inside the folder are not taken for images the next time.
    inside = call("predict", run, photos / "a.jpg", photos / "more", "--out", photos / "more" / "drawn")
    assert inside.exit_code == 0
    assert (
        "on 3 images"
        in call("predict", run, photos / "a.jpg", photos / "more", "--out", photos / "more" / "drawn").output
    )


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), ValueError("an odd name"), KeyboardInterrupt()]
)
def test_what_was_found_outlives_its_drawing(run, tmp_path, monkeypatch, fault):
    """The second of three drawings fails, or somebody interrupts there."""
    for name in "abc":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    calls = []

    def draw(image, *rest, **options):
        calls.append(image)
        if len(calls) == 2:
            raise fault
        return image

    monkeypatch.setattr("detrkit.drawing.predictions.draw_predictions", draw)
    told = ["--threshold", "0", "--device", "cpu"]
    result = CliRunner().invoke(app, ["predict", str(run), str(tmp_path), "--out", str(tmp_path / "out"), *told])
    assert result.exit_code == (130 if isinstance(fault, KeyboardInterrupt) else 1), result.output
    found = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    names = [Path(one["file_name"]).name for one in found]
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {one["id"] for one in found}
    if isinstance(fault, KeyboardInterrupt):
        assert names == ["a.png", "b.png"]
        return
    assert names == ["a.png", "b.png", "c.png"]
    assert "b.png could not be drawn: " in result.output
    assert [path.name for path in sorted((tmp_path / "out").glob("*.png"))] == ["a.png", "c.png"]


def test_an_object_of_no_class_is_neither_measured_nor_drawn(tmp_path):
    """With sigmoid scores "no object" is a class like the others (SMCA), of a label that no category has."""
    recipe = small_recipe(8).with_values({"head.background": True})
    detector = detrkit.build_detector(recipe).eval()
    with torch.no_grad():
        for head in detector.decoder.head.classes:
            head.layers[-1].weight.zero_()
            head.layers[-1].bias.copy_(torch.tensor([-9.0] * 8 + [3.0]))
    [found] = detector.detect(torch.zeros(1, 3, 64, 64), None, torch.tensor([[64, 64]]))
    assert found["labels"][:9].tolist() == [8] * 9
    run = tmp_path / "run"
    write_checkpoint(run / "last", weights=detector.state_dict(), average=None, state={}, metadata={})
    (run / "recipe.toml").write_text(recipe.to_toml())
    (run / "categories.json").write_text(format_categories(recipe.section("data")().categories))
    assert call("evaluate", run).exit_code == 0
    assert {row["category_id"] for row in json.loads((run / "detections.json").read_text())} == set(range(1, 9))
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "a.png")
    result = call("predict", run, tmp_path / "a.png", "--out", tmp_path / "drawn", "--points")
    assert "0 detections" in result.output
    assert json.loads((tmp_path / "drawn" / "predictions.json").read_text()) == []
    assert len(Image.open(tmp_path / "drawn" / "a.png").getcolors()) == 1


def test_an_output_that_cannot_be_written_is_named_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr("detrkit.trained.open_trained", None)  # no detector is opened
    (tmp_path / "file").touch()
    (tmp_path / "photos" / "more").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "more" / "a.png")
    for command in (("evaluate", run), ("predict", run, tmp_path / "photos"), ("show", run, "val:1")):
        with pytest.raises(UserError, match=r"--out .*file is a file; it should be a folder"):
            call(*command, "--out", tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "more").touch()
    with pytest.raises(UserError, match=r"--out .*more is a file"):
        call("predict", run, tmp_path / "photos", "--out", tmp_path / "out")
    with pytest.raises(UserError, match=r"--run-dir .*file is a file"):
        call("train", "quickstart", "--run-dir", tmp_path / "file")
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(UserError, match=r"-o .*w.safetensors is a folder"):
        call("convert", tmp_path / "official.pth", "quickstart", "-o", tmp_path / "w.safetensors")


def test_options_that_would_do_nothing_are_refused(run, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "mine.toml").write_text((run / "recipe.toml").read_text())
    out = tmp_path / "out"
    for command in (("evaluate",), ("predict", tmp_path / "a.png"), ("show", "val:1")):
        verb, *rest = command
        weights = run / "last" / "weights.safetensors"
        with pytest.raises(UserError, match="--which chooses among the checkpoints of a run; --weights is one file"):
            call(verb, tmp_path / "mine.toml", *rest, "--weights", weights, "--which", "last", "--out", out)
        with pytest.raises(UserError, match="last is one checkpoint of a run"):
            call(verb, run / "last", *rest, "--which", "best", "--out", out)
        told = call(verb, run, *rest, "--which", "lst", "--out", out)
        assert (told.exit_code, "'lst' is not one of 'best'" in told.output) == (2, True)
    assert not out.exists()


def test_points_of_a_detector_without_any_are_refused(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    said = [text for text in SMALL if not text.startswith("queries.grid")]
    recipe = detrkit.load_recipe("base/dab_detr", [*said, "queries.count=5", "detector.classes=8"])
    save_weights(detrkit.build_detector(recipe).state_dict(), tmp_path / "dab.safetensors", {"classes": "8"})
    (tmp_path / "dab.toml").write_text(recipe.to_toml())
    command = ["predict", tmp_path / "dab.toml", tmp_path / "a.png", "--weights", tmp_path / "dab.safetensors"]
    with pytest.raises(UserError, match=r"--points: this detector has none \(a tiny detector\)"):
        call(*command, "--out", tmp_path / "out", "--points")
    assert not (tmp_path / "out").exists()
    assert call(*command, "--out", tmp_path / "out").exit_code == 0


def test_predict_tells_the_best_score_where_none_is_kept(run, tmp_path):
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "a.png")
    command = ["predict", run, tmp_path / "a.png", "--out", tmp_path / "out", "--threshold"]
    call(*command, 0)
    scores = {row["score"] for row in json.loads((tmp_path / "out" / "predictions.json").read_text())}
    *_, second, best = sorted(scores)
    assert f"0 detections from 1 on 1 image, written to {tmp_path / 'out'}; the best score was {best:.3f}" in (
        call(*command, 1).output
    )
    call(*command, (second + best) / 2)
    assert {row["score"] for row in json.loads((tmp_path / "out" / "predictions.json").read_text())} == {best}


def test_predict_never_draws_over_its_input(run, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UserError, match="choose another folder"):
        call("predict", run, tmp_path, "--out", tmp_path)
    with pytest.raises(UserError, match="choose another folder"):
        call("predict", run, tmp_path / "a.png", "--out", tmp_path)
    assert (tmp_path / "a.png").read_bytes() == before
