"""LabelMe's files: what becomes of each kind of shape, and what is said of those that are wrong."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from detrkit.data.labelme_source import LabelMeSource
from detrkit.data.transforms import NoAugment
from detrkit.errors import DataError

from .conftest import coco, part
from .formats import write_labelme
from .same_set import auto, truth


def shape(kind, points, label="cat", **further):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, **further}


@pytest.fixture
def one(small_set, tmp_path):
    """A function that writes shapes as the annotations of one image, and gives the set's."""
    source = coco(small_set)
    write_labelme({"train": source.train, "val": source.val}, tmp_path / "other")
    path = tmp_path / "other" / "train" / "train_2.json"

    def write(*shapes, **further):
        path.write_text(json.dumps({**json.loads(path.read_text()), "shapes": list(shapes), **further}))
        return auto(tmp_path / "other").train

    write.path = path
    return write


def boxes(dataset):
    records = dataset.records
    rows = records.of_image([str(name) for name in records.file_names].index("train/train_2.png"))
    names = {category.id: category.name for category in dataset.real_categories}
    return [
        (names[c], [round(n, 6) for n in b])
        for c, b in zip(records.category_ids[rows].tolist(), records.boxes[rows].tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("rectangle", [[9, 7], [3, 2]], [3, 2, 6, 5]),
        ("rectangle", [[3, 2], [9, 2], [9, 7], [3, 7]], [3, 2, 6, 5]),  # X-AnyLabeling's four corners
        ("polygon", [[3, 4], [6.5, 2], [9, 7], [5, 5]], [3, 2, 6, 5]),
        (None, [[3, 4], [6.5, 2], [9, 7]], [3, 2, 6, 5]),
        ("rotation", [[6, 2], [9, 5], [6, 8], [3, 5]], [3, 2, 6, 6]),
        ("oriented_rectangle", [[6, 2], [9, 5], [6, 8], [3, 5]], [3, 2, 6, 6]),
        ("mask", [[3, 2], [9, 7]], [3, 2, 6, 5]),
        ("circle", [[10, 9], [13, 13]], [5, 4, 10, 10]),
    ],
)
def test_a_box_is_the_smallest_around_a_shape(one, kind, points, box):
    dataset = one(shape(kind, points))
    assert (boxes(dataset), dataset.faults) == ([("cat", box)], [])


def test_shapes_of_one_label_and_group_are_one_object(one):
    dataset = one(
        shape("rectangle", [[1, 1], [4, 4]], group_id=1),
        shape("rectangle", [[1, 1], [2, 2]]),
        shape("polygon", [[6, 2], [9, 2], [9, 8]], group_id=1),
        shape("rectangle", [[1, 1], [3, 3]], "dog", group_id=1),
        shape("rectangle", [[1, 1], [2, 2]]),
    )
    assert boxes(dataset) == [
        ("cat", [1, 1, 8, 7]),
        ("cat", [1, 1, 1, 1]),
        ("dog", [1, 1, 2, 2]),
        ("cat", [1, 1, 1, 1]),
    ]


def test_difficult_objects_count_neither_way(one):
    dataset = one(shape("rectangle", [[1, 1], [4, 4]], difficult=True), shape("rectangle", [[1, 1], [4, 4]], "dog"))
    assert [(o[0], o[2]) for o in truth(dataset)["train_2.png"]] == [("cat", True), ("dog", False)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (shape("point", [[3, 4]]), 'is a point, which has no box ("cat")'),
        (shape("linestrip", [[3, 4], [5, 6], [7, 7]], "dog"), 'is a linestrip, which has no box ("dog")'),
        (shape("polygon", []), "needs two points or more, each of two finite numbers"),
        (shape("polygon", None), "needs two points or more"),
        (shape("rectangle", [[1, 2], [math.nan, 3]]), "needs two points or more"),
        (shape("rectangle", [[1, 2], [3, True]]), "needs two points or more"),
        (shape("rectangle", [[1, 2], [3, 10**400]]), "needs two points or more"),
        (shape("rectangle", [[1, 2], [3, 4]], " "), "has no label"),
        ([], "is no table"),
    ],
)
def test_a_shape_that_is_no_object_is_named(one, wrong, said):
    dataset = one(shape("rectangle", [[1, 1], [4, 4]]), wrong)
    assert boxes(dataset) == [("cat", [1, 1, 3, 3])]
    (fault,) = dataset.faults
    assert (fault.kind, fault.loses) == ("bad object", True)
    assert f"train_2.json: shape 2 {said}" in str(fault)


def test_what_is_labelled_to_be_ignored_is_left_out_and_said(one):
    """As LabelMe's own converters do; it is a label of its examples, and no class."""
    dataset = one(shape("rectangle", [[1, 1], [4, 4]], "__ignore__"))
    assert boxes(dataset) == []
    assert [(fault.kind, fault.loses) for fault in dataset.faults] == [("ignored region", False)]
    assert [category.name for category in dataset.real_categories] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"train_2\.json:1: is not JSON"),
        ("\ufeff[]", r'train_2\.json: is not a LabelMe annotation \("shapes" is missing, a list\)'),
        ('{"shapes": 3}', r'"shapes" is missing'),
        ("[" * 100_000, r"train_2\.json: is not JSON"),
    ],
)
def test_a_file_that_is_none_of_labelme_s_is_named(one, text, said):
    one.path.write_text(text, encoding="utf-8")
    (fault,) = auto(one.path.parents[1]).train.faults
    assert fault.loses
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(str(fault))


@pytest.mark.parametrize("said", ["C:\\Users\\me\\photos\\train_2.png", "elsewhere/train_2.png", None, 3, ""])
def test_an_image_is_found_by_the_annotation_s_own_name(one, said):
    dataset = one(shape("rectangle", [[1, 1], [4, 4]]), imagePath=said)
    assert dataset.missing_files == []
    assert boxes(dataset) == [("cat", [1, 1, 3, 3])]


def test_an_image_of_another_name_is_where_the_annotation_says(one):
    folder = one.path.parent
    (folder / "train_2.png").rename(folder / "photo 7.png")
    dataset = one(shape("rectangle", [[1, 1], [4, 4]]), imagePath="photo 7.png", imageHeight=None)
    assert dataset.missing_files == []
    assert "train/photo 7.png" in dataset.records.file_names.tolist()
    (folder / "photo 7.png").unlink()
    dataset = one(shape("rectangle", [[1, 1], [4, 4]]), imagePath="photo 7.png", imageHeight=40)
    assert [path.name for _, path in dataset.missing_files] == ["photo 7.png"]


def test_a_folder_without_such_files_is_told_so(small_set, tmp_path):
    with pytest.raises(DataError, match=r"has no LabelMe annotations \(\.json\) beside images or in labels"):
        _ = LabelMeSource(root=str(small_set), augment=part(NoAugment)).train
    with pytest.raises(DataError, match=r"Set data\.root to the folder with LabelMe's \.json files"):
        _ = LabelMeSource(augment=part(NoAugment)).train
    source = coco(small_set)
    write_labelme({"train": source.train}, tmp_path / "other")
    with pytest.raises(DataError, match=r"no folder val with LabelMe's files; .*data\.val_share=0\.2"):
        _ = LabelMeSource(root=str(tmp_path / "other"), augment=part(NoAugment)).val
    shutil.rmtree(tmp_path / "other" / "train")
    (tmp_path / "other" / "notes.json").write_text("{}")
    with pytest.raises(DataError, match="none of the known formats"):
        _ = auto(tmp_path / "other").train
