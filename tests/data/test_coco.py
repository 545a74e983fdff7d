"""Annotation files: what is kept, what is left out, and that each fault is named."""

import json
import re

import numpy as np
import pytest

from detrkit.data.check import check_split
from detrkit.data.coco import read_categories, read_coco
from detrkit.data.coco_source import SplitFiles, open_annotations
from detrkit.data.records import Category
from detrkit.engine.data_checks import crowded, require_objects
from detrkit.errors import DataError
from detrkit.structures import QueryLimit

from .conftest import CATEGORIES, box_entry, coco, image_entry, read


def test_ids_become_labels_by_ascending_id_and_are_written_back(write_set):
    folder = write_set([image_entry(5)], [box_entry(1, 5, [1, 2, 3, 4], category=7)])
    source = coco(folder)
    assert [(category.id, category.name) for category in source.categories] == [(3, "cat"), (7, "dog")]
    _, boxes, labels = source.train.read(0)
    assert labels.tolist() == [1]
    assert boxes.tolist() == [[1, 2, 4, 6]]
    assert source.val.ground_truth().anns[1]["category_id"] == 7


def test_category_ids_can_stay_labels(write_set):
    source = coco(write_set([image_entry(5)], [box_entry(1, 5, [1, 2, 3, 4], category=7)]), labels="category_id")
    assert len(source.categories) == 8
    assert source.train.read(0)[2].tolist() == [7]
    assert source.categories[7].name == "dog"
    assert source.categories[0].name.startswith("unused")
    assert set(source.val.ground_truth().cats) == {3, 7}


def test_category_ids_without_end_are_no_labels(write_set):
    folder = write_set([image_entry(1)], [], [{"id": 2**31, "name": "cat"}])
    assert [category.id for category in coco(folder).categories] == [2**31]
    with pytest.raises(DataError, match=r"largest category id, 2147483648; accepted are ids below 100000"):
        _ = coco(folder, labels="category_id").categories


def test_crowds_are_evaluated_but_not_learned_and_empty_images_stay(write_set):
    crowd = box_entry(1, 4, [0, 0, 30, 30], iscrowd=1, area=77.5)
    source = coco(write_set([image_entry(9), image_entry(4)], [crowd, box_entry(2, 4, [1, 1, 5, 5])]))
    assert source.train.image_ids.tolist() == [4, 9]
    assert len(source.train.read(0)[1]) == 1
    assert source.train.read(1)[1].shape == (0, 4)
    truth = source.val.ground_truth()
    assert [(entry["iscrowd"], entry["area"]) for entry in truth.anns.values()] == [(1, 77.5), (0, 25)]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (lambda x, y, w, h: [x, y, w, h], None),
        (lambda x, y, w, h: [x / 60, y / 40, w / 60, h / 40], "none of the 12 boxes reaches beyond a pixel"),
        (lambda x, y, w, h: [x, y, x + w, y + h], "8 of the 12 boxes pass the edge .* and as corners"),
    ],
)
def test_boxes_in_another_form_are_named(tmp_path, form, told):
    boxes = [form(x, y, 12, 10) for x in (2, 18, 32, 46) for y in (1, 15, 29)]  # of an image of 60 x 40
    entries = [box_entry(number, 1, box, area=120) for number, box in enumerate(boxes)]
    found = [fault for fault in read(tmp_path, [image_entry(1)], entries)[2] if fault.kind == "box form"]
    assert len(found) == (told is not None)
    if told:
        assert re.search(told, str(found[0]))
        assert not found[0].loses  # the boxes are used as they stand


def test_each_fault_is_named_and_the_rest_is_kept(tmp_path):
    images = [image_entry(1), image_entry(2), image_entry(2, name="again.png")]
    annotations = [
        box_entry(10, 1, [1, 1, 0, 5]),
        box_entry(11, 1, [1, 1, 5, -5]),
        box_entry(12, 1, [70, 1, 5, 5]),
        box_entry(13, 1, [50, 30, 20, 20]),
        box_entry(14, 1, [1, 1, 5, 5], category=99),
        box_entry(15, 77, [1, 1, 5, 5]),
        box_entry(16, 1, [1, 1, 5]),
        box_entry(17, 1, [1, 1, 5, float("nan")]),
        box_entry(18, 2, [1, 1, 5, 5]),
        box_entry(18, 2, [2, 2, 5, 5]),
        box_entry(19, 1, None),
    ]
    _, records, faults = read(tmp_path, images, annotations)
    assert {(fault.kind, fault.image_id, fault.annotation_id) for fault in faults} == {
        ("duplicate image id", 2, None),
        ("zero area", 1, 10),
        ("zero area", 1, 11),
        ("outside", 1, 12),
        ("out of range", 1, 13),
        ("unknown category", 1, 14),
        ("unknown image", 77, 15),
        ("bad box", 1, 16),
        ("bad box", 1, 17),
        ("duplicate annotation id", 2, 18),
        ("bad box", 1, 19),
    }
    assert [fault.kind for fault in faults if not fault.loses] == ["out of range"]
    assert records.annotation_ids.tolist() == [13, 18]
    assert records.training_boxes(0)[0].tolist() == [[50, 30, 60, 40]]
    assert records.boxes[0].tolist() == [50, 30, 20, 20]


@pytest.mark.parametrize("area", [-1, -0.5, float("inf"), float("nan"), 10**400, "30", True], ids=lambda a: str(a)[:9])
def test_an_area_that_is_none_is_named_and_replaced(tmp_path, area):
    # pycocotools leaves out every truth whose area is below 0: there would be nothing to find, and no AP.
    _, records, faults = read(tmp_path, [image_entry(1)], [box_entry(10, 1, [1, 1, 5, 6], area=area)])
    assert records.areas.tolist() == [30]
    assert [(fault.kind, fault.image_id, fault.annotation_id, fault.loses) for fault in faults] == [
        ("bad area", 1, 10, False)
    ]


def test_a_missing_area_is_no_fault(tmp_path):
    annotations = [box_entry(10, 1, [1, 1, 5, 6]), box_entry(11, 1, [1, 1, 2, 6], area=None)]
    _, records, faults = read(tmp_path, [image_entry(1)], annotations)
    assert (records.areas.tolist(), faults) == ([30, 12], [])


def test_only_a_crowd_flag_makes_a_crowd(tmp_path):
    flags = [0, 1, True, False, None, 0.0, 1.0, "0", "1", "", 2, -1, 0.5, [], 10**400]
    annotations = [box_entry(i, 1, [1, 1, 5, 6], iscrowd=flag) for i, flag in enumerate(flags)]
    _, records, faults = read(tmp_path, [image_entry(1)], annotations)
    assert records.annotation_ids.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert records.crowd.tolist() == [False, True, True, False, False, False, True]
    assert {(fault.kind, fault.loses) for fault in faults} == {("bad crowd flag", True)}
    assert [fault.annotation_id for fault in faults] == list(range(7, len(flags)))


def test_annotation_id_zero_survives_evaluation(write_set):
    # pycocotools reads a matched truth with id 0 as "not matched".
    truth = coco(write_set([image_entry(0)], [box_entry(0, 0, [1, 1, 9, 9])])).val.ground_truth()
    assert list(truth.anns) == [1]
    assert truth.anns[1]["area"] == 81


def test_missing_size_is_read_from_the_file(write_set):
    entry = image_entry(1)
    folder = write_set([entry], [])
    for split in ("train", "val"):
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(file.read_text().replace('"height": 40', '"height": null'))
    assert coco(folder).val.records.sizes.tolist() == [[40, 60]]
    assert [fault.kind for fault in coco(folder).val.faults] == ["no image size"]


def test_a_missing_size_is_read_from_the_file_wherever_that_is_found(write_set):
    folder = write_set([image_entry(1)], [])
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"height": 40', '"height": null').replace("1.png", r"images\\val\\1.png"))
    dataset = coco(folder).val
    assert dataset.records.sizes.tolist() == [[40, 60]]
    assert dataset.missing_files == []


def test_a_name_from_the_root_is_none_of_the_folder(write_set):
    folder = write_set([image_entry(1)], [])
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("1.png", "/1.png"))
    dataset = coco(folder).val
    assert dataset.read(0)[0].size == (60, 40)
    assert [fault.kind for fault in dataset.faults] == ["file names"]


def test_a_split_elsewhere_is_described_by_its_path(write_set, tmp_path):
    folder = write_set([image_entry(1)], [])
    (folder / "annotations").rename(folder / "elsewhere")
    (folder / "train").rename(folder / "elsewhere" / "train")
    (tmp_path / "root" / "annotations").mkdir(parents=True)
    file = str(folder / "elsewhere" / "instances_train.json")
    source = coco(tmp_path / "root", train=SplitFiles(annotations=file))
    assert source.describe() == f"COCO: {file}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: is not JSON"),
        ("{", ":1: is not JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"images": [{"id": 1%s}]}' % ("0" * 5000), "cannot be read as JSON"),
        ("[]", "is not a COCO annotation file"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [{}], "categories": [{"id": 1, "name": "a"}]}', "images[0]"),
        ('{"images": [], "categories": [{"id": 1%s, "name": "a"}]}' % ("0" * 30), "categories[0]"),
        ('{"images": 3, "categories": [{"id": 1, "name": "a"}]}', "'images' must be a list"),
        ('{"images": [], "categories": [{"id": "1", "name": "a"}]}', "categories[0]"),
    ],
)
@pytest.mark.parametrize("reader", [open_annotations, lambda file: read_coco(file, file.parent)])
def test_what_is_no_annotation_file_is_refused_by_name(tmp_path, reader, text, said):
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        reader(file)
    assert "broken.json" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("side", [float("inf"), float("nan"), 1e300, 10**400, True, "60", 0], ids=lambda s: str(s)[:9])
def test_a_size_that_is_none_is_read_from_the_file(write_set, side):
    folder = write_set([image_entry(1)], [box_entry(1, 1, [50, 1, 5, 5])])
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"width": 60', f'"width": {json.dumps(side)}'))
    assert coco(folder).val.records.sizes.tolist() == [[40, 60]]
    assert [fault.kind for fault in coco(folder).val.faults] == ["no image size"]


def test_numbers_too_large_to_keep_are_faults(tmp_path):
    annotations = [
        box_entry(10**30, 1, [1, 1, 5, 5]),
        box_entry(2, 10**30, [1, 1, 5, 5]),
        box_entry(3, 1, [1, 1, 5, 5], category=10**30),
        box_entry(4, 1, [1, 1, 5, 10**400]),
        box_entry(5, 1, [1, 1, 5, True]),
        box_entry(6, 1, [1, 1, 10**200, 10**200]),
    ]
    _, records, faults = read(tmp_path, [image_entry(1)], annotations)
    assert [fault.kind for fault in faults] == [
        "bad annotation id",
        "unknown image",
        "unknown category",
        "bad box",
        "bad box",
        "out of range",
    ]
    assert records.annotation_ids.tolist() == [6]
    assert max(len(str(fault)) for fault in faults) < 200
    with pytest.raises(DataError, match=r"images\[0\] needs a whole number 'id' of 64 bits"):
        read(tmp_path, [image_entry(10**30)])


ATTRIBUTES = {"attributes": {"categories": [{"id": 1, "name": "trap"}]}}
TRAPS = [  # annotations that hold what looks like the table of categories
    {"note": 'a "categories": [{"id": 1, "name": "trap"}]} '},
    {"note": '"categories'},
    {"note": "categories", "categories": [{"id": 1, "name": "trap"}]},
    ATTRIBUTES,
]


@pytest.mark.parametrize("order", ["iac", "ica", "cia", "ico"])
@pytest.mark.parametrize("trap", TRAPS)
def test_no_annotation_is_taken_for_the_categories(tmp_path, order, trap):
    tables = {
        "i": {"images": [image_entry(1) | trap]},
        "a": {"annotations": [trap]},
        "c": {"categories": [category | trap for category in CATEGORIES]},
        "o": ATTRIBUTES,
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps({key: value for name in order for key, value in tables[name].items()}, indent=2))
    assert [(category.id, category.name) for category in read_categories(file)] == [(3, "cat"), (7, "dog")]


@pytest.mark.parametrize("order", ["iac", "cia", "ica"])
def test_categories_of_a_large_file_are_read_without_the_rest(tmp_path, order, monkeypatch):
    tables = {
        "i": ("images", [image_entry(i) for i in range(60_000)]),
        "a": ("annotations", [box_entry(i, i, [1, 1, 2, 2]) | ATTRIBUTES for i in range(60_000)]),
        "c": ("categories", CATEGORIES),
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(dict(tables[name] for name in order)))
    whole = []
    monkeypatch.setattr("detrkit.data.coco._parse", lambda path: whole.append(path) or json.loads(path.read_text()))
    assert [category.id for category in read_categories(file)] == [3, 7]
    assert len(whole) == (order == "ica")  # in the middle of 15 MB, they are looked for by parsing all


def test_splits_must_agree_on_categories(write_set):
    folder = write_set([image_entry(1)], [])
    file = folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("dog", "wolf"))
    with pytest.raises(DataError, match="'wolf' here, but is 'dog'"):
        _ = coco(folder).val


def test_records_stay_flat(write_set):
    records = coco(write_set([image_entry(1)], [box_entry(1, 1, [1, 1, 2, 2])])).train.records
    columns = vars(records)
    assert columns.pop("texts") is None
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in columns.values())


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ([box_entry(n, 1, [1, 1, 5, 5], iscrowd=1) for n in (1, 2)], r"crowd regions .*: 2\); .*iscrowd = 0"),
        ([box_entry(1, 1, [1, 1, 0, 5]), box_entry(2, 1, [70, 1, 5, 5])], r"1 image; zero area: 1; outside: 1\)"),
        ([], r"no annotations at all"),
    ],
)
def test_a_split_without_an_object_is_refused_before_the_first_step(write_set, annotations, said):
    source = coco(write_set([image_entry(1)], annotations))
    with pytest.raises(DataError, match=said) as caught:
        require_objects(source)
    assert "no image of train keeps an object" in str(caught.value)


def test_one_object_in_each_split_is_enough(write_set):
    crowd = box_entry(1, 1, [0, 0, 30, 30], iscrowd=1)
    require_objects(coco(write_set([image_entry(1)], [crowd, box_entry(2, 1, [1, 1, 5, 5])])))


def test_more_objects_than_queries_or_than_coco_counts_are_said_with_the_key_that_changes_it(write_set):
    boxes = [box_entry(n, 1, [n % 50, n % 30, 5, 5]) for n in range(1, 106)]
    few = [box_entry(n, 2, [n % 50, 1, 5, 5]) for n in range(200, 204)]
    crowds = [box_entry(n, 3, [1, 1, 5, 5], iscrowd=1) for n in range(300, 320)]
    source = coco(write_set([image_entry(n) for n in (1, 2, 3, 4)], [*boxes, *few, *crowds]))
    assert source.train.records.objects().tolist() == [105, 4, 0, 0]
    train, val, coco_s = crowded(source, QueryLimit(16, "queries.grid"))
    assert "1 image of train with up to 105 objects, and the detector has 16 queries" in train
    assert train.endswith("raise queries.grid")
    assert "cannot be found" in val
    assert "best 100 detections" in coco_s
    assert crowded(source, None) == [coco_s]
    assert len(crowded(source, QueryLimit(3, "queries.count"))) == 3
    assert "2 images of train" in crowded(source, QueryLimit(3, "queries.count"))[0]


def test_ids_that_are_texts_are_numbered_and_told_as_they_were(tmp_path):
    images = [image_entry(name, name=f"{name}.png") for name in ("img_7", "img_2", "img_9")]
    annotations = [
        box_entry("a", "img_2", [1, 1, 5, 5]),
        box_entry("b", "img_9", [2, 1, 0, 5]),
        box_entry("c", "img_5", [3, 1, 5, 5]),
        box_entry("a", "img_7", [3, 1, 5, 5]),
    ]
    _, records, faults = read(tmp_path, images, annotations)
    assert [records.given_id(n) for n in records.image_ids.tolist()] == ["img_7", "img_2", "img_9"]
    assert records.objects().tolist() == [0, 1, 0]
    assert [(f.kind, f.image_id, f.annotation_id) for f in faults] == [
        ("unknown image", None, "c"),
        ("duplicate annotation id", "img_7", "a"),
        ("zero area", "img_9", "b"),
    ]
    assert "image img_9, annotation b" in str(faults[2])
    assert records.ground_truth([Category(3, "cat")]).getAnnIds() == [1]
    report = check_split(open_annotations(tmp_path / "a.json", tmp_path))
    assert report.images_without_boxes == ["img_7", "img_9"]
    assert [f.image_id for f in report.faults if f.kind == "missing file"] == ["img_7", "img_2", "img_9"]


def test_numbers_stay_numbers_and_both_kinds_at_once_are_refused(tmp_path):
    _, records, _ = read(tmp_path, [image_entry(70)], [box_entry("x", 70, [1, 1, 5, 5])])
    assert records.given_id(70) == 70
    assert len(records.boxes) == 1
    with pytest.raises(DataError, match=r"ids of 'images' are texts \('7'\) and others \(8\)"):
        read(tmp_path, [image_entry("7"), image_entry(8)])
    _, _, [fault] = read(tmp_path, [image_entry("1")], [box_entry(5, 1, [1, 1, 5, 5])])
    assert fault.kind == "unknown image"  # the number 1 is not the text "1"
