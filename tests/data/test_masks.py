"""Boxes of segmentations, where annotations give none."""

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from .conftest import image_entry, read


def test_boxes_follow_from_polygons_and_run_lengths_where_there_is_none(tmp_path):
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[10:20, 5:30] = 1
    packed = coco_masks.encode(mask)
    plain = {"size": [40, 60], "counts": [210, *[10, 30] * 24, 10, 1220]}
    outlines = [
        [[2.5, 3.0, 10.0, 3.0, 10.0, 8.25], [20.0, 30.0, 30.0, 30.0, 30.0, 35.5, 20.0, 35.5]],
        {"size": [40, 60], "counts": packed["counts"].decode()},
        plain,
    ]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 3, "segmentation": outline} for n, outline in enumerate(outlines, 1)
    ]
    _, records, faults = read(tmp_path, [image_entry(1)], annotations)
    assert not faults
    assert records.boxes.tolist() == [[2.5, 3.0, 27.5, 32.5], [5, 10, 25, 10], [5, 10, 25, 10]]
    assert records.areas[1:].tolist() == [250, 250]
    assert 60 < records.areas[0] < 90  # of the mask, not of the box around both pieces


@pytest.mark.parametrize("far", [1e3, 1e9, 1e308])
def test_the_area_of_a_polygon_that_goes_far_is_that_within_the_image(tmp_path, far):
    entry = {"id": 8, "image_id": 1, "category_id": 3, "segmentation": [[10, 10, far, 10, far, 20, 10, 20]]}
    _, records, [fault] = read(tmp_path, [image_entry(1)], [entry])
    assert records.boxes.tolist() == [[10, 10, far - 10, 10]]
    assert records.areas.tolist() == [500]
    assert fault.kind == "out of range"


@pytest.mark.parametrize(
    "odd",
    [
        *([[1, 2, 3]], [[1, 2, 3, 4]], "text", [["a"] * 6], [[]]),
        *({"counts": "x"}, {"size": [4, 4], "counts": [16]}),
        *({"size": [40, 60], "counts": counts} for counts in ([5, -3, 9], "\xff\xfe", "0" * 50)),
    ],
)
def test_a_segmentation_that_is_none_is_named(tmp_path, odd):
    entry = {"id": 8, "image_id": 1, "category_id": 3, "segmentation": odd}
    _, records, [fault] = read(tmp_path, [image_entry(1)], [entry])
    assert (len(records.boxes), fault.kind, fault.annotation_id, fault.loses) == (0, "bad segmentation", 8, True)
