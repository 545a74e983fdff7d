"""One set of images in every format: the same images, boxes and names come out, by whatever way it is found."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detrkit.data.building import RecordsBuilder, Truth
from detrkit.errors import DataError

from .conftest import coco, image_entry
from .formats import WRITERS, write_voc, write_whole
from .same_set import auto, same, truth

SPLIT = [form for form in WRITERS if form != "whole"]


@pytest.mark.parametrize("form", SPLIT)
def test_the_same_set_comes_out_of_every_format(small_set, tmp_path, form):
    source = coco(small_set)
    splits = {"train": source.train, "val": source.val}
    WRITERS[form](splits, tmp_path / "other")
    found = auto(tmp_path / "other")
    for split, dataset in splits.items():
        same(truth(dataset), truth(getattr(found, split)))
    assert [category.name for category in found.categories] == ["cat", "dog"]
    image, boxes, labels = found.train.read(3)
    ours = source.train.read(3)
    assert np.array_equal(np.asarray(image), np.asarray(ours[0]))
    assert sorted(labels.tolist()) == sorted(ours[2].tolist())
    assert len(boxes) == 3


@pytest.mark.parametrize("name", ["bccd", "aerial_cars"])
@pytest.mark.parametrize("form", WRITERS)
def test_real_sets_come_out_of_every_format(real_data, tmp_path, name, form):
    source = coco(real_data / name)
    splits = {"train": source.train, "val": source.val}
    WRITERS[form](splits, tmp_path / "other")
    found = auto(tmp_path / "other")
    if form == "whole":
        same({**truth(source.train), **truth(source.val)}, {**truth(found.train), **truth(found.val)})
        assert len(found.val) == round(0.2 * (len(source.train) + len(source.val)))
        return
    for split, dataset in splits.items():
        same(truth(dataset), truth(getattr(found, split)))


def test_a_seed_divides_a_set_without_splits_in_the_same_way_everywhere(small_set, tmp_path):
    source = coco(small_set)
    write_whole({"train": source.train, "val": source.val}, tmp_path / "whole")
    drawn = {}
    for seed in (0, 0, 1):
        found = auto(tmp_path / "whole", val_share=0.25, split_seed=seed)
        train, val = set(truth(found.train)), set(truth(found.val))
        assert (len(train), len(val), train & val) == (9, 3, set())
        drawn.setdefault(seed, val)
        assert drawn[seed] == val
    assert drawn[0] != drawn[1]
    assert drawn[0] == {"train_1.png", "train_6.png", "val_4.png"}  # on every machine
    with pytest.raises(DataError, match=r"has no val annotations.*set data\.val_share=0\.2"):
        _ = coco(tmp_path / "whole").val


def test_the_images_of_coco_s_splits_may_lie_in_one_folder(small_set):
    before = {split: truth(getattr(coco(small_set), split)) for split in ("train", "val")}
    (small_set / "images").mkdir()
    for split in before:
        for file in (small_set / split).iterdir():
            file.rename(small_set / "images" / file.name)
        (small_set / split).rmdir()
    for split, ours in before.items():
        dataset = getattr(auto(small_set), split)
        same(ours, truth(dataset))
        assert dataset.missing_files == []
    (small_set / "images").rename(small_set.parent / "elsewhere")
    with pytest.raises(DataError, match=r"instances_train\.json: where are its images\? train_1\.png"):
        _ = auto(small_set).train
    (small_set / "val").mkdir()  # whose images, of the same names, are not those of train
    (small_set.parent / "elsewhere" / "train_1.png").rename(small_set / "val" / "train_1.png")
    with pytest.raises(DataError, match=r"data\.train\.images: .*train is not a folder"):
        _ = auto(small_set).train


def yolo(tmp_path, said, files):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (100, 50)).save(path)
        else:
            path.write_text(content)
    (tmp_path / "data.yaml").write_text(said if isinstance(said, str) else yaml.safe_dump(said))
    return auto(tmp_path)


BOX, LINE = [["b", [0.25, 0.5, 0.5, 0.25], False]], "1 0.5 0.625 0.5 0.25\n"


@pytest.mark.parametrize(
    ("said", "files"),
    [
        ({"train": "images/t", "val": "images/v"}, ["images/t/a.png", "labels/t/a.txt", "images/v/c.png"]),
        ({"train": "t/images", "val": "v/images"}, ["t/images/a.png", "t/labels/a.txt", "v/images/c.png"]),
        ({"train": "../t/images", "val": "../v/images"}, ["t/images/a.png", "t/labels/a.txt", "v/images/c.png"]),
        ({"train": "one", "val": ["two", "three"]}, ["one/a.png", "one/a.txt", "three/c.png", "two/.keep"]),
        ({"path": "/data/nowhere", "train": "one", "val": "two"}, ["one/sub/a.png", "one/sub/a.txt", "two/c.png"]),
        ({"train": "train.txt", "val": "val.txt"}, ["images/x/a.png", "labels/x/a.txt", "images/x/c.png"]),
    ],
)  # fmt: skip
def test_yolo_s_layouts(tmp_path, said, files):
    content = {name: LINE if name.endswith(".txt") else "" if name.endswith(".keep") else None for name in files}
    if said["train"] == "train.txt":
        content |= {"train.txt": "./images/x/a.png\n", "val.txt": f"{tmp_path}/images/x/c.png\n"}
    for names in (["a", "b"], {0: "a", 1: "b"}):
        source = yolo(tmp_path, {**said, "names": names}, content)
        assert {k: [list(o) for o in v] for k, v in truth(source.train).items()} == {"a.png": BOX}
        assert truth(source.val) == {"c.png": []}  # no label file: no objects


@pytest.mark.parametrize("linked", ["images", "images/t", "images/t/a.png", "images/t/sub"])
@pytest.mark.parametrize("listed", [False, True])
def test_labels_lie_beside_links_to_images_not_behind_them(tmp_path, linked, listed):
    files = {"images/t/a.png": None, "labels/t/a.txt": LINE, "images/t/sub/b.png": None, "labels/t/sub/b.txt": LINE}
    root = tmp_path / "set"
    yolo(root, {"train": "t.txt" if listed else "images/t", "names": ["a", "b"]}, files)
    (root / "t.txt").write_text("./images/t/a.png\nimages/t/sub/b.png\n")
    (root / linked).rename(tmp_path / "elsewhere.png")
    (root / linked).symlink_to(tmp_path / "elsewhere.png")
    (root / "images/t/back").symlink_to(root / "images")  # leads in a circle
    found = {k: [list(o) for o in v] for k, v in truth(auto(root).inner.open("train")).items()}
    assert found == {"a.png": BOX, "b.png": BOX}


def test_a_path_of_another_machine_is_passed_over_wherever_one_stands(tmp_path, monkeypatch):
    said = {"path": "/another/machine/sub", "train": "t", "val": "v", "names": ["a", "b"]}
    yolo(tmp_path, said, {"sub/t/a.png": None, "sub/t/a.txt": LINE, "sub/v/c.png": None})
    monkeypatch.chdir(tmp_path.parent)
    for root in (tmp_path, Path(tmp_path.name)):
        assert list(truth(auto(root).train)) == ["a.png"]
    with pytest.raises(DataError, match="there is no ~nobody-of-that-name/set"):
        _ = auto(Path("~nobody-of-that-name/set")).train


def test_paths_that_this_machine_keeps_from_us_are_another_machine_s(tmp_path, monkeypatch):
    """As /root/... of a container, for whoever is not root here."""
    stat = os.stat

    def refusing(path, *args, **more):
        if os.fspath(path).startswith("/root/other"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return stat(path, *args, **more)

    monkeypatch.setattr(os, "stat", refusing)
    said = {"path": "/root/other/set", "train": "/root/other/set/i/t", "val": "v.txt", "names": ["a", "b"]}
    yolo(tmp_path, said, {"i/t/a.png": None, "i/t/a.txt": LINE, "v/c.png": None})
    (tmp_path / "v.txt").write_text("/root/other/set/v/c.png\n")
    source = auto(tmp_path)
    assert (list(truth(source.train)), list(truth(source.val))) == (["a.png"], ["c.png"])


def test_polygons_become_boxes_and_other_lines_are_named(tmp_path):
    lines = (
        "0 0.1 0.2 0.5 0.2 0.5 0.6 0.3 0.8\n\n0 0.5 0.5\n5 0.5 0.5 0.1 0.1\nx 1 1 1 1\n0 nan 0 0 0\n0 0.5 0.5 0 0.1\n"
    )
    source = yolo(tmp_path, {"train": "i", "names": ["a"]}, {"i/a.png": None, "i/a.txt": lines, "i/b.png": None})
    source = auto(tmp_path, val_share=0.5)
    datasets = [source.train, source.val]
    [found] = [d for d in datasets if "a.png" in truth(d)]
    assert np.allclose(truth(found)["a.png"][0][1], [0.1, 0.2, 0.4, 0.6])
    assert [fault.kind for fault in found.faults] == ["bad label line"] * 4 + ["zero area"]
    assert [int(str(fault).split(".txt:")[1].split(":")[0]) for fault in found.faults[:4]] == [3, 4, 5, 6]
    assert "class 5 is none of the 1 in names" in str(found.faults[1])
    assert "i/a.png: box [50.0, 22.5, 0.0, 5.0] has no area" in str(found.faults[4])  # its number is ours


def test_a_set_without_any_labels_is_told_where_they_should_be(tmp_path):
    said = {"train": "t/imgs", "val": "v/images", "names": ["a"]}
    files = {"t/imgs/a.png": None, "t/labels/a.txt": "0 .5 .5 .1 .1", "v/images/b.png": None, "v/images/c.png": None}
    source = yolo(tmp_path, said, files | {"v/labels/c.txt": ""})
    [fault] = source.train.faults
    assert str(fault).endswith(
        f"none of the images has a text file of labels; the first should have {tmp_path}/t/imgs/a.txt"
    )
    assert fault.loses
    assert source.val.faults == []  # an empty one says that there is nothing in the image


def test_a_box_that_no_number_holds_is_left_out(tmp_path):
    files = {"i/a.png": None, "i/a.txt": "0 0.5 0.5 1e308 0.1\n" + LINE}
    dataset = yolo(tmp_path, {"train": "i", "names": ["a", "b"]}, files).inner.open("train")
    assert {name: [list(one) for one in objects] for name, objects in truth(dataset).items()} == {"a.png": BOX}
    assert "a.txt:1: has a number that is too large: left out" in str(dataset.faults[0])


def test_boxes_within_a_pixel_are_named_whatever_the_format():
    builder = RecordsBuilder()
    builder.add("a.png", (40, 60), [Truth(1, (0.1 * number, 0.2, 0.1, 0.5)) for number in range(10)])
    records, faults = builder.build()
    assert len(records.boxes) == 10
    assert [(fault.kind, fault.loses) for fault in faults] == [("box form", False)]


def test_boxes_of_a_yolo_set_in_pixels_are_named(tmp_path):
    lines = "".join(f"0 {20 + number} 20 10 8\n" for number in range(11)) + LINE
    dataset = yolo(tmp_path, {"train": "i", "names": ["a", "b"]}, {"i/a.png": None, "i/a.txt": lines}).inner.open(
        "train"
    )
    [fault] = [fault for fault in dataset.faults if fault.kind == "box form"]
    assert "11 of the 12 boxes lie outside their images" in fault.detail
    assert "YOLO's are shares of the image" in fault.detail


def test_any_name_that_json_can_hold_is_drawn_for_a_split(tmp_path):
    names = ["a.png", "b.png", "c.png", "caf\udce9.png", "\ud83d.png"]
    images = [image_entry(number, name=name) for number, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    for name in names[:3]:
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    found = auto(tmp_path)
    assert sorted([*truth(found.train), *truth(found.val)]) == sorted(names)


def test_keypoints_behind_boxes_are_no_polygons(tmp_path):
    lines = LINE.strip() + " 0.1 0.1 2 0.9 0.9 1\n" + LINE
    said = {"train": "i", "names": ["a", "b"], "kpt_shape": [2, 3]}
    source = yolo(tmp_path, said, {"i/a.png": None, "i/a.txt": lines, "i/b.png": None})
    assert [list(one) for one in truth(source.inner.open("train"))["a.png"]] == [*BOX, *BOX]
    with pytest.raises(DataError, match=r"kpt_shape: should be \[keypoints, numbers of each\], but is 17"):
        yolo(tmp_path, {**said, "kpt_shape": 17}, {}).open("train")


def test_a_split_without_a_place_is_none(tmp_path):
    source = yolo(tmp_path, {"train": "i", "val": "", "names": ["a"]}, {f"i/{n}.png": None for n in range(5)})
    assert (len(source.train), len(source.val)) == (4, 1)  # divided


def test_names_are_the_texts_that_stand_there(tmp_path):
    said = "train: i\nnames: %s\n"
    for form in ("[no, 010, 1.10, null, 'on', A]", "{0: no, 1: 010, 2: 1.10, 3: null, 4: 'on', 5: A}"):
        source = yolo(tmp_path, said % form, {"i/a.png": None, "i/b.png": None})
        assert [category.name for category in source.categories] == ["no", "010", "1.10", "null", "on", "A"]


def test_the_mark_of_windows_before_a_text_is_none_of_it(small_set, tmp_path):
    mark = b"\xef\xbb\xbf"
    source = yolo(
        tmp_path / "yolo",
        {"train": "t.txt", "val": "v", "names": ["a", "b"]},
        {"i/a.png": None, "t.txt": "", "v/c.png": None},
    )
    (tmp_path / "yolo/t.txt").write_bytes(mark + b"i/a.png\n")
    (tmp_path / "yolo/i/a.txt").write_bytes(mark + LINE.encode())
    assert {k: [list(o) for o in v] for k, v in truth(source.train).items()} == {"a.png": BOX}
    splits = {"train": coco(small_set).train, "val": coco(small_set).val}
    write_voc(splits, tmp_path / "voc")
    file = tmp_path / "voc/ImageSets/Main/train.txt"
    file.write_bytes(mark + file.read_bytes())
    assert len(auto(tmp_path / "voc").train) == len(splits["train"])
    write_whole(splits, tmp_path / "whole")
    [file] = (tmp_path / "whole").glob("**/*.json")
    file.write_bytes(mark + file.read_bytes())
    assert len(auto(tmp_path / "whole").train) + len(auto(tmp_path / "whole").val) == sum(map(len, splits.values()))


def test_names_of_voc_s_images_may_have_spaces(small_set, tmp_path):
    write_voc({"train": coco(small_set).train, "val": coco(small_set).val}, tmp_path)
    main = tmp_path / "ImageSets" / "Main"
    first, second, *_ = (main / "train.txt").read_text().split()
    for folder in ("Annotations", "JPEGImages"):
        [file] = (tmp_path / folder).glob(f"{first}.*")
        file.rename(file.with_stem("my photo 1"))
    (main / "train.txt").write_text(f"my photo 1\n{second} -1\n")
    assert {Path(name).stem for name in truth(auto(tmp_path).train)} == {"my photo 1", second}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("names: [a\n", r"data\.yaml:2: is not YAML"),
        ("- a\n", "should be a table"),
        ({"names": {1: "a", 2: "b"}, "train": "i"}, r"names: the classes should be numbered 0, 1, 2"),
        ({"names": [], "train": "i"}, "names: should be a list of class names"),
        ({"names": ["a"], "train": "gone"}, r"train: there is no gone below"),
        ({"names": ["a"], "train": 3}, r"train: should be a folder, a text file"),
        ({"names": ["a"], "train": "empty"}, r"train has no images; looked in"),
    ],
)
def test_what_is_wrong_with_a_yaml_is_named(tmp_path, said, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        _ = yolo(tmp_path, said, {"i/a.png": None}).train


@pytest.mark.parametrize("difficult", ["1", "True"])
def test_difficult_objects_count_neither_way_and_broken_annotations_are_named(small_set, tmp_path, difficult):
    source = coco(small_set)
    write_voc({"train": source.train, "val": source.val}, tmp_path / "voc")
    file = tmp_path / "voc" / "Annotations" / "train_2.xml"
    file.write_text(file.read_text().replace("<difficult>0", f"<difficult>{difficult}"))
    (tmp_path / "voc" / "Annotations" / "train_3.xml").write_text("<annotation><object>")
    (tmp_path / "voc" / "Annotations" / "train_4.xml").write_text("<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>")
    dataset = auto(tmp_path / "voc").train
    assert [o[2] for o in truth(dataset)["train_2.png"]] == [True]
    assert len(dataset.read(1)[1]) == 0
    assert [fault.kind for fault in dataset.faults] == ["bad annotation file"] * 2
    assert "train_3.xml:1: is not XML" in str(dataset.faults[0])
    assert "declares entities" in str(dataset.faults[1])


def test_images_that_val_has_are_not_trained_on_where_a_trainval_has_them_too(small_set, tmp_path):
    source = coco(small_set)
    write_voc({"train": source.train, "val": source.val}, tmp_path / "voc")
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    (lists / "train.txt").unlink()
    found = auto(tmp_path / "voc")
    assert truth(found.train).keys() == truth(source.train).keys()
    assert truth(found.val).keys() == truth(source.val).keys()
    (lists / "val.txt").write_text("\n")
    with pytest.raises(DataError, match="the list of the split names no image"):
        _ = auto(tmp_path / "voc").val


def test_a_folder_in_no_format_is_told_what_is_looked_for(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(
        DataError, match=r"none of the known formats: COCO .* YOLO .* VOC .* LabelMe .* It holds photo\.jpg"
    ):
        _ = auto(tmp_path).train
    with pytest.raises(DataError, match="there is no"):
        _ = auto(tmp_path / "gone").train


def test_roboflows_val_split_may_be_called_val(small_set, tmp_path):
    """As people rename it; passed over, images of `train` would be kept for it, and its own would never be seen."""
    source = coco(small_set)
    WRITERS["roboflow"]({"train": source.train, "val": source.val}, tmp_path / "export")
    (tmp_path / "export" / "valid").rename(tmp_path / "export" / "val")
    found = auto(tmp_path / "export")
    assert truth(found.train).keys() == truth(source.train).keys()
    assert truth(found.val).keys() == truth(source.val).keys()
    assert found.describe().endswith("val/_annotations.coco.json")


def test_each_format_says_what_was_found(small_set, tmp_path):
    source = coco(small_set)
    said = {}
    for form in SPLIT:
        WRITERS[form]({"train": source.train, "val": source.val}, tmp_path / form)
        said[form] = auto(tmp_path / form).describe()
    assert said == {
        "yolo": "YOLO: data.yaml, 2 classes, train in 1 place, val in 1 place",
        "voc": "Pascal VOC: voc, 2 classes, train.txt, val.txt",
        "labelme": "LabelMe: labelme, 2 classes, train, val",
        "roboflow": "COCO: train/_annotations.coco.json, valid/_annotations.coco.json",
        "coco": "COCO: annotations/instances_train.json, annotations/instances_val.json",
    }


@pytest.mark.parametrize("form", ["voc", "labelme"])
def test_a_size_that_no_image_has_is_read_from_the_image(small_set, tmp_path, form):
    source = coco(small_set)
    WRITERS[form]({"train": source.train, "val": source.val}, tmp_path)
    for path in [*tmp_path.rglob("*.xml"), *tmp_path.rglob("train/*.json")]:
        said = re.sub(r"(<width>|imageWidth\": )\d+", r"\g<1>1e30", path.read_text())
        assert "1e30" in said
        path.write_text(said)
    assert auto(tmp_path).train.records.sizes.tolist() == source.train.records.sizes.tolist()
