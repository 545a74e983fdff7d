"""The verb ``check-data``: a report for people, one for programs, and an exit code."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detrkit.cli.app import app
from detrkit.data.auto_source import AutoSource
from detrkit.data.check import check_split
from detrkit.data.records import check_boxes
from detrkit.data.same_images import same_images
from detrkit.data.save import save_yolo
from detrkit.data.transforms import NoAugment
from detrkit.errors import DataError, UserError

from .conftest import CATEGORIES, box_entry, coco, image_entry, part
from .same_set import auto


def run(*arguments):
    return CliRunner().invoke(app, ["check-data", *map(str, arguments)])


@pytest.fixture
def good(write_set):
    return write_set([image_entry(1), image_entry(2)], [box_entry(1, 1, [1, 1, 20, 20])])


def test_a_good_set_passes_and_is_counted(good, tmp_path):
    result = run(good, "--json", tmp_path / "out" / "report.json", "--pictures", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    assert "no faults" in result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())["splits"]["train"]
    assert (report["images"], report["boxes"], report["images_without_boxes"]) == (2, 1, [2])
    assert report["classes"][0] == {"id": 3, "name": "cat", "boxes": 1, "images": 1, "crowds": 0}
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {f"{split}_{image}.jpg" for split in ("train", "val") for image in (1, 2)}


@pytest.mark.parametrize("save", [None, save_yolo])
def test_an_object_that_stands_twice_is_named_and_kept(write_set, tmp_path, save):
    twice = [box_entry(n, 1, [1, 1, 20, 20]) for n in (1, 2)]
    folder = write_set([image_entry(1), image_entry(2)], [*twice, box_entry(3, 2, [1, 1, 20, 20])])
    if save is not None:
        source = auto(folder)
        folder = tmp_path / "saved"
        save({"train": source.train, "val": source.val}, folder)
    report = check_split(auto(folder).train)
    [fault] = report.faults
    assert (fault.kind, fault.image_id, fault.loses, report.boxes) == ("same object twice", 1, False, 3)
    assert "1.png: 2 objects of class" in str(fault)
    assert "have the box 1, 1, 20, 20 (x, y, width, height): used as they stand" in str(fault)


def test_faults_in_files_are_found_and_fail(good, tmp_path):
    (good / "train" / "1.png").write_bytes(b"broken")
    (good / "train" / "2.png").unlink()
    (good / "val" / "1.png").write_bytes((good / "val" / "2.png").read_bytes())
    file = good / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"height": 40', '"height": 44'))
    result = run(good, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    splits = json.loads((tmp_path / "report.json").read_text())["splits"]
    found = {(name, fault["kind"], fault["image_id"]) for name in splits for fault in splits[name]["faults"]}
    assert found == {
        ("train", "unreadable image", 1),
        ("train", "missing file", 2),
        ("val", "other size", 1),
        ("val", "other size", 2),
        ("val", "same image twice", 2),
    }
    assert "missing file: 1" in result.output
    assert run(good, "--no-files").exit_code == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_that_no_size_tells_is_noted_and_can_be_set(write_set, tmp_path, orientation):
    square = image_entry(2, height=40, width=40)
    folder = write_set([image_entry(1), square], [box_entry(1, 1, [1, 1, 20, 20])])
    stored = {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image in (1, 2):
        file = folder / "train" / f"{image}.png"
        stored[image] = Image.open(file).copy()
        stored[image].save(file, exif=exif)
    result = run(folder, "--json", tmp_path / "report.json")
    assert result.exit_code == 0
    faults = json.loads((tmp_path / "report.json").read_text())["splits"]["train"]["faults"]
    # Turned by a quarter, the image of 60 x 40 would be one of 40 x 60: so the annotations are for the stored one.
    unclear = [] if orientation == 1 else [1, 2] if orientation < 5 else [2]
    assert [(fault["kind"], fault["image_id"], fault["loses"]) for fault in faults] == [
        ("unclear orientation", image, False) for image in unclear
    ]
    assert ('data.exif = "stored"' in result.output) == bool(unclear)

    turned, as_stored = coco(folder).train, coco(folder, exif="stored").train
    for index, image in enumerate((1, 2)):
        assert np.array_equal(as_stored.read(index)[0], stored[image])
        assert np.array_equal(turned.read(index)[0], stored[image]) == (image not in unclear)
    assert check_split(as_stored).faults == []


def test_one_annotation_file_is_enough(good):
    result = run(good / "annotations" / "instances_train.json")
    assert result.exit_code == 0, result.output
    assert "instances_train: 2 images, 1 box" in result.output
    assert run(good / "annotations" / "instances_train.json", "--images", good / "val").exit_code == 0


@pytest.mark.parametrize(("form", "file"), [("coco", "annotations/instances_train.json"), ("yolo", "data.yaml")])
def test_the_format_that_was_found_is_said(good, tmp_path, form, file):
    assert run(good, "--save-as", form, "--out", tmp_path / "copy").exit_code == 0
    for target in (tmp_path / "copy", "quickstart_coco"):
        more = [f"data.root={tmp_path / 'copy'}"] if target == "quickstart_coco" else []
        assert run(target, *more).output.startswith(f"{form.upper()}: {file}, ")
    annotations = good / "annotations" / "instances_train.json"
    assert run(annotations).output.startswith("COCO: instances_train.json\n")
    assert run("quickstart", "data.train_images=2", "data.val_images=2").output.startswith("\ntrain: ")  # nothing found


def test_what_a_training_does_without_a_val_split_is_told(good, tmp_path):
    """It divides a folder's images; a recipe may say that it does not. A file alone is no split."""
    annotations = good / "annotations" / "instances_train.json"
    annotations.rename(good / "annotations" / "train.json")
    assert "split: " not in run(good / "annotations" / "train.json", "--images", good / "train").output
    (good / "annotations" / "train.json").rename(annotations)
    (good / "annotations" / "instances_val.json").unlink()
    assert "no val split: a training keeps 20% of these images for it (data.val_share)" in run(good).output
    told = run("quickstart_coco", "data.type=coco", f"data.root={good}").output
    assert "no val split: there is nothing to evaluate on" in told
    assert "split: " not in run("quickstart_coco", f"data.root={good}").output  # divided already
    (good / "annotations" / "instances_train.json").rename(good / "annotations" / "instances_val.json")
    assert "no train split: it serves for evaluation only" in run(good).output


def test_mistakes_are_told(good, tmp_path):
    for arguments, error in (([tmp_path / "nope.json"], DataError), ([good, "data.root=x"], UserError)):
        assert isinstance(run(*arguments).exception, error)


def test_outputs_that_cannot_be_written_are_named_before_the_report(good, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for option, path, told in (("--json", "folder", "is a folder"), ("--pictures", "file", "is a file")):
        result = run(good, option, tmp_path / path)
        assert isinstance(result.exception, UserError)
        assert f"{option} {tmp_path / path} {told}" in str(result.exception)
        assert result.output == ""
    assert sorted(tmp_path.iterdir()) == before


def test_count_without_pictures_is_refused(good, tmp_path):
    assert "--count goes with --pictures" in str(run(good, "--count", 3).exception)
    assert run(good, "--count", 1, "--pictures", tmp_path / "pictures").exit_code == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"train_1.jpg", "val_1.jpg"}


def test_a_recipe_is_enough():
    result = run("sap_detr_r50_50ep", "data.type=shapes", "data.train_images=5", "data.val_images=3")
    assert result.exit_code == 0, result.output
    assert "train: 5 images" in result.output


def test_a_folder_with_a_recipe_stands_for_that(tmp_path):
    said = 'extends = "quickstart"\ndata = { train_images = 5, val_images = 3 }\n'
    (tmp_path / "recipe.toml").write_text(said)
    result = run(str(tmp_path), "data.val_images=4")
    assert ("train: 5 images" in result.output, "val: 4 images" in result.output) == (True, True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("side", "exif"), [(60, "upright"), (60, "stored"), (40, "stored"), (40, "upright")])
def test_a_copy_for_yolo_has_boxes_of_upright_images(tmp_path, orientation, side, exif):
    for folder in ("annotations", "train"):
        (tmp_path / folder).mkdir()
    pixels = np.zeros((40, side, 3), dtype=np.uint8)
    pixels[5:20, 3:9] = 255
    upright = Image.Exif()
    upright[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "train" / "1.png", exif=upright)
    entry = {
        "images": [image_entry(1, width=side)],
        "annotations": [box_entry(1, 1, [3, 5, 6, 15])],
        "categories": CATEGORIES,
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(entry))
    source = coco(tmp_path, exif=exif).train
    save_yolo({"train": source}, tmp_path / "copy")
    again = AutoSource(root=str(tmp_path / "copy"), augment=part(NoAugment)).inner.open("train")
    for dataset in (source, again):
        image, boxes, _ = dataset.read(0)
        left, top, right, bottom = boxes.round().astype(int)[0]
        inside = np.asarray(image)[top:bottom, left:right]
        as_it_is = exif == "upright" and orientation != 1 and (side == 40 or orientation in (2, 3, 4))
        assert as_it_is or inside.min() == 255  # where sizes do not tell, the recipe has to


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_a_clean_copy_has_no_faults_and_is_checked_as_it_is_found(write_set, tmp_path, form):
    odd = [box_entry(1, 1, [50, 30, 20, 20]), box_entry(2, 1, [1, 1, 0, 5]), box_entry(3, 2, [1, 2, 3, 4])]
    folder, copy = write_set([image_entry(1), image_entry(2)], odd), tmp_path / "copy"
    assert run(folder, "--save-as", form, "--out", copy).exit_code == 1  # an annotation was lost
    again = run(copy)
    assert again.exit_code == 0, again.output
    assert "2 images, 2 boxes" in again.output
    assert "no faults" in again.output
    for other in ("coco", "yolo"):  # one copy on top of another would be a set of both
        refused = run(folder, "--save-as", other, "--out", copy)
        assert isinstance(refused.exception, UserError)
        assert "copy is not empty; name a folder that is new or empty" in str(refused.exception)
    assert "makes its images" in str(run("quickstart", "--save-as", form, "--out", tmp_path / "new").exception)
    assert "go together" in str(run(folder, "--save-as", form).exception)


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_a_clean_copy_s_boxes_are_read_by_the_orientation_that_is_named(write_set, tmp_path, form):
    """An image that is as large upright as stored: what the copy's boxes are for is in no file of it."""
    folder, exif = write_set([image_entry(1)], [box_entry(1, 1, [3, 5, 6, 15])]), Image.Exif()
    exif[0x0112] = 3
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[5:20, 3:9] = 255
    Image.fromarray(pixels).save(folder / "train" / "1.png", exif=exif)
    recipe = ["quickstart_coco", f"data.root={folder}", "data.exif=stored"]
    said = run(*recipe, "--save-as", form, "--out", tmp_path / "copy").output
    way = "stored" if form == "coco" else "upright"
    assert f'so it is read by data.exif = "{way}"' in said
    again = AutoSource(root=str(tmp_path / "copy"), augment=part(NoAugment), exif=way).train
    image, boxes, _ = again.read(0)
    left, top, right, bottom = boxes.round().astype(int)[0]
    assert np.asarray(image)[top:bottom, left:right].min() == 255
    assert "is read by" not in run(folder, "--save-as", form, "--out", tmp_path / "other").output


def test_a_clean_copy_counts_images_that_could_not_even_be_measured(tmp_path):
    for split in ("train", "val"):
        folder = tmp_path / "set" / "images" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(folder / "a.png")
        (folder / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (folder / "b.png").write_bytes(b"broken")
    (tmp_path / "set" / "data.yaml").write_text("names: [cell]\ntrain: images/train\nval: images/val\n")
    said = run(tmp_path / "set", "--save-as", "coco", "--out", tmp_path / "copy").output
    assert "without 1 image whose files cannot be used" in said


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_a_clean_copy_has_no_image_that_cannot_be_used_and_says_what_it_has_not(write_set, tmp_path, form):
    images = [image_entry(1), image_entry(2), image_entry(3), image_entry(4)]
    boxes = [box_entry(number, number, [1, 1, 20, 20]) for number in (1, 2, 3, 4)]
    folder, copy = write_set(images, [*boxes, box_entry(5, 1, [9, 9, 9, 9]) | {"iscrowd": 1}]), tmp_path / "copy"
    (folder / "train" / "2.png").write_bytes(b"broken")
    Image.new("RGB", (31, 30)).save(folder / "train" / "3.png")
    (folder / "train" / "4.png").unlink()
    said = run(folder, "--save-as", form, "--out", copy).output
    assert "without 3 images whose files cannot be used" in said
    assert ("without 2 crowd regions (VOC: difficult objects), which YOLO does not know" in said) == (form == "yolo")
    again = run(copy)
    assert again.exit_code == 0, again.output
    assert "train: 1 image, 1 box" in again.output
    assert "val: 4 images, 4 boxes" in again.output
    unread = run(folder, "--no-files", "--save-as", form, "--out", tmp_path / "unread").output
    assert "without 1 image whose files cannot be used" in unread  # which is missing


def test_a_box_is_told_without_the_noise_of_arithmetic():
    boxes, sizes = np.array([[0.1 + 0.2, 5, 0, 1]]), np.array([[48, 64]])
    _, [fault] = check_boxes(boxes, sizes, np.array([7]), [1])
    assert fault.detail == "box [0.3, 5.0, 0.0, 1.0] has no area: left out (image 64 x 48)"


def test_images_that_stand_twice_are_named_in_a_split_and_across(small_set, tmp_path):
    """By their bytes; those of one size alone are no proof, and a missing file is another fault."""
    train, val = small_set / "train", small_set / "val"
    (train / "train_5.png").write_bytes((train / "train_2.png").read_bytes())
    (val / "val_3.png").write_bytes((train / "train_2.png").read_bytes())
    other = bytearray((train / "train_1.png").read_bytes())
    other[-1] ^= 1
    (val / "val_4.png").write_bytes(bytes(other))
    (val / "val_1.png").unlink()
    source = coco(small_set)
    found = same_images({"train": source.train, "val": source.val})
    [[twice], [leak]] = found.values()
    assert (twice.kind, twice.image_id, twice.loses) == ("same image twice", 50, False)
    assert twice.detail == "train_5.png is the same as train_2.png: both are used"
    assert (leak.kind, leak.image_id, leak.loses) == ("image of train", 30, False)
    assert leak.detail == "val_3.png is train_2.png of train: what is learned there by heart counts as found here"
    result = run(small_set, "--json", tmp_path / "report.json")
    assert "same image twice: 1" in result.output
    assert "image of train: 1" in result.output
    kinds = [fault["kind"] for fault in json.loads((tmp_path / "report.json").read_text())["splits"]["val"]["faults"]]
    assert "image of train" in kinds
    assert "image of train" not in run(small_set, "--no-files").output
