"""The real data sets, with all that is odd about them."""

import json

import pytest
import torch

from detrkit.data.check import check_split
from detrkit.data.coco_source import open_annotations

from .conftest import CocoSource, coco, small_detr

COUNTS = {  # from the data sets' own description: images, boxes, crowds, small / medium / large
    ("bccd", "train"): (205, 2804, 0, (23, 855, 1926)),
    ("bccd", "val"): (87, 1137, 0, (9, 374, 754)),
    ("aerial_cars", "train"): (45, 2084, 0, (2013, 71, 0)),
    ("aerial_cars", "val"): (20, 509, 0, (276, 233, 0)),
    ("coco_sample", "train"): (25, 354, 5, (203, 104, 47)),
    ("coco_sample", "val"): (25, 322, 6, (174, 100, 48)),
}


@pytest.mark.parametrize(("name", "split"), COUNTS)
def test_counts(real_data, name, split):
    report = check_split(coco(real_data / name).open(split), files=name != "aerial_cars")
    assert (report.images, report.boxes, report.crowds, tuple(report.sizes.values())) == COUNTS[name, split]
    assert report.faults == []


@pytest.mark.parametrize(
    ("name", "split", "image_ids", "kind"),
    [
        ("bccd", "train", [343], "zero area"),
        ("bccd", "val", [338], "zero area"),
        ("aerial_cars", "train", [35], "out of range"),
        ("aerial_cars", "val", [46, 51, 52, 56, 64], "out of range"),
    ],
)
def test_raw_faults_are_named_and_got_through(real_data, name, split, image_ids, kind):
    path = real_data / name / "annotations" / f"instances_{split}_raw_faults.json"
    dataset = open_annotations(path)
    assert [(fault.kind, fault.image_id) for fault in dataset.faults] == [(kind, image) for image in image_ids]
    in_file = len(json.loads(path.read_text())["annotations"])
    assert len(dataset.records.boxes) == in_file - (1 if kind == "zero area" else 0)
    for index in range(len(dataset)):
        boxes = dataset[(index, 0)].boxes
        assert (boxes[:, 2:] > 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] / 2 <= 1 + 1e-6).all()


def test_coco_has_eighty_labels_or_ninety_one(real_data):
    assert len(coco(real_data / "coco_sample").categories) == 80
    assert len(coco(real_data / "coco_sample", labels="category_id").categories) == 91


def test_an_epoch_of_coco(real_data):
    source = CocoSource(root=str(real_data / "coco_sample"), augment=small_detr())
    batches = list(source.loader(batch_size=4, workers=2, seed=1))
    assert sum(map(len, batches)) == 24
    assert any(batch.mask is not None for batch in batches)
    for target in (target for batch in batches for target in batch.targets):
        assert target["labels"].dtype == torch.int64
        assert ((target["labels"] >= 0) & (target["labels"] < 80)).all()
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 1)).all()
    seen = {image_id for batch in source.loader(split="val", batch_size=4) for image_id in batch.image_ids}
    assert 226111 in seen  # has no annotation
    assert len(seen) == 25
    assert sum(entry["iscrowd"] for entry in source.val.ground_truth().anns.values()) == 6
