"""The built-in shapes: fixed by their seed, rich, and with boxes around what can be seen."""

import numpy as np
import pytest

from detrkit.data.figures import FIGURES, FINE, Scene, paint
from detrkit.errors import DataError

from .conftest import shapes


@pytest.fixture(scope="module")
def source():
    return shapes(train_images=60, val_images=60)


def test_same_seed_same_images_other_seed_others(source):
    again, other = shapes(train_images=60), shapes(train_images=60, seed=1)
    image, boxes, labels = source.train.read(5)
    for twin, equal in ((again, True), (other, False)):
        image2, boxes2, labels2 = twin.train.read(5)
        assert np.array_equal(image, image2) is equal
        assert (boxes.tolist() == boxes2.tolist() and labels.tolist() == labels2.tolist()) is equal
    assert not np.array_equal(image, source.val.read(5)[0])


def test_ground_truth_is_what_training_sees(source):
    truth = source.val.ground_truth()
    assert sorted(truth.imgs) == list(range(1, 61))
    for index in range(0, 60, 7):
        _, boxes, labels = source.val.read(index)
        entries = truth.imgToAnns[index + 1]
        expected = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)]
        assert np.allclose(boxes, np.array(expected).reshape(-1, 4))
        assert [entry["category_id"] - 1 for entry in entries] == labels.tolist()


def test_boxes_fit_masks_that_do_not_overlap(source):
    for index in range(40):
        scene = source.train.scene(index)
        cover = np.zeros((scene.height * FINE, scene.width * FINE), dtype=int)
        for figure in scene.figures:
            (x, y), (height, width) = figure.corner, figure.mask.shape
            region = cover[y : y + height, x : x + width]
            assert region.shape == figure.mask.shape  # inside the image
            region += figure.mask
            edges = figure.mask[0], figure.mask[-1], figure.mask[:, 0], figure.mask[:, -1]
            assert all(edge.any() for edge in edges)  # the box is tight
        assert cover.max(initial=0) <= 1


def test_nothing_is_drawn_outside_the_boxes(source):
    for index in range(20):
        scene = source.train.scene(index)
        with_figures = np.asarray(paint(scene, np.random.default_rng(index)), dtype=int)
        ground = np.asarray(paint(Scene(scene.height, scene.width, ()), np.random.default_rng(index)), dtype=int)
        changed = np.abs(with_figures - ground).max(-1) > 30  # more than the grain of both
        boxed = np.zeros_like(changed)
        for figure in scene.figures:
            x, y, width, height = figure.box
            box = np.s_[int(y) : int(np.ceil(y + height)), int(x) : int(np.ceil(x + width))]
            assert changed[box].any()
            boxed[box] = True
        assert not changed[~boxed].any()


def test_the_data_is_rich():
    records = shapes(train_images=400).train.records
    assert np.unique(records.category_ids).tolist() == list(range(1, len(FIGURES) + 1))
    low, high = np.percentile(records.areas, [2, 98])
    assert high / low > 100  # two orders of magnitude
    bars = records.boxes[records.category_ids == list(FIGURES).index("bar") + 1]
    assert (bars[:, 2:].max(1) / bars[:, 2:].min(1)).max() > 5
    assert np.diff(records.first).max() >= 8
    touching = 0
    for index in range(400):
        boxes = records.boxes[records.of_image(index)]
        corner = boxes[:, :2] + boxes[:, 2:]
        meet = (boxes[:, None, :2] < corner[None]).all(-1)
        touching += (meet & meet.T).sum() > len(boxes)
    assert touching > 200  # in most images some boxes overlap


def test_options_act():
    source = shapes(classes=("ring", "bar"), objects=(0, 2), image_size=(40, 90), train_images=50, sizes=(0.3, 0.4))
    records = source.train.records
    assert [category.name for category in source.categories] == ["ring", "bar"]
    assert set(records.category_ids.tolist()) == {1, 2}
    assert np.diff(records.first).max() <= 2
    assert np.diff(records.first).min() == 0  # an image without boxes
    assert records.sizes.min() >= 40
    assert records.sizes.max() <= 90
    assert len(np.unique(records.sizes, axis=0)) > 20
    few, many = (shapes(train_images=100, small_fraction=f).train.records.areas for f in (0.0, 1.0))
    assert np.median(few) > 5 * np.median(many)
    for wrong in ({"objects": (5, 2)}, {"image_size": (90, 40)}, {"classes": ("bar", "bar")}):
        with pytest.raises(DataError):
            shapes(**wrong)
