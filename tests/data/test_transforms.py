"""Sizes by DETR's rule; boxes that stay on their objects, checked against pixels."""

import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from detrkit.data.dataset import relative
from detrkit.data.transforms import (
    DetrAugment,
    FlipAugment,
    NoAugment,
    crop,
    crop_resized,
    flip,
    make_sample,
    resize,
    resized,
)
from detrkit.errors import DataError


@st.composite
def one_object(draw):
    """A sample whose image is black but for one white rectangle, which its box encloses exactly."""
    height, width = draw(st.integers(8, 70)), draw(st.integers(8, 70))
    top, left = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[top:bottom, left:right] = 255
    return make_sample(Image.fromarray(pixels), np.array([[left, top, right, bottom]]), np.array([4]))


def extent(image):
    """(x1, y1, x2, y2) of what is at least half white."""
    bright = np.asarray(image)[..., 0] >= 128
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None


@given(one_object())
def test_flip_moves_box_and_pixels_together(sample):
    flipped = flip(sample)
    assert flipped.boxes[0].tolist() == extent(flipped.image)
    assert flip(flipped).boxes[0].tolist() == sample.boxes[0].tolist()


@given(one_object(), st.data())
def test_crop_cuts_boxes_at_its_edges_and_drops_the_empty(sample, data):
    height, width = sample.image.height, sample.image.width
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    size = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    cut = crop(sample, top, left, *size)
    assert (cut.image.height, cut.image.width) == size
    found = extent(cut.image)
    assert cut.boxes.tolist() == ([] if found is None else [found])
    assert cut.labels.tolist() == ([] if found is None else [4])


@given(one_object(), st.integers(8, 120), st.integers(8, 120))
def test_resize_keeps_relative_boxes(sample, height, width):
    changed = resize(sample, (height, width))
    assert (changed.image.height, changed.image.width) == (height, width)
    assert np.allclose(relative(changed), relative(sample), atol=1e-5)


@given(one_object(), st.integers(1, 3))
def test_resize_moves_pixels_and_box_together(sample, times):
    changed = resize(sample, (sample.image.height * times, sample.image.width * times))
    assert np.abs(np.array(changed.boxes[0].tolist()) - extent(changed.image)).max() <= 1


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(900, 1500))
def test_sizes_keep_the_shape_and_the_limit(height, width, short, longest):
    new = resized(height, width, short, longest)
    assert resized(width, height, short, longest) == new[::-1]
    low, high = min(height, width), max(height, width)
    if high / low * short <= longest:
        assert min(new) == short
        assert 0 <= short * high / low - max(new) < 1  # rounded down
    else:
        assert min(new) == max(round(longest * low / high), 1)
        # half a pixel of rounding on the short side is this much on the long one
        assert low / high * longest < 1 or abs(max(new) - longest) <= high / low / 2 + 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1066)), ((427, 640), (800, 1199)), ((430, 1764), (325, 1333)), ((640, 428), (1196, 800))],
)
def test_known_evaluation_sizes(size, expected):
    assert resized(*size, 800, 1333) == expected


@pytest.mark.parametrize(("order", "mean"), [("id_order", 888_477), ("json_order", 904_206)])
def test_mean_evaluation_size_of_coco(real_data, order, mean):
    rows = json.loads((real_data / "coco_val2017_first100_sizes.json").read_text())[order]
    pixels = [np.prod(resized(height, width, 800, 1333)) for _, height, width in rows]
    assert round(np.mean(pixels)) == mean


@given(st.integers(0, 2**32), st.integers(20, 90), st.integers(20, 90))
@example(seed=20, height=20, width=46)
@settings(max_examples=60)
def test_the_whole_augmentation_keeps_boxes_on_their_objects(seed, height, width):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[5:15, 3:17] = 255
    sample = make_sample(Image.fromarray(pixels), np.array([[3, 5, 17, 15], [0, 0, 2, 2]]), np.array([1, 0]))
    augment = DetrAugment(scales=(60, 80), max_size=110, crop_scales=(50,), crop_min=24, crop_max=40)
    result = augment.train(sample, np.random.default_rng(seed))
    assert min(result.image.size) <= 80
    boxes = relative(result).numpy()
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    assert (low >= -1e-6).all()
    assert (high <= 1 + 1e-6).all()
    assert (boxes[:, 2:] > 0).all()
    assert len(result.labels) == len(boxes)
    found = extent(result.image)
    if found is not None and 1 in result.labels:
        box = result.boxes[result.labels.tolist().index(1)].numpy()
        if (box[2:] - box[:2]).min() >= 4:  # what a crop left of it in a sliver is blurred to less than half white
            assert np.abs(box - found).max() <= 2  # blurred by two resizes


def test_augmentation_is_fixed_by_its_generator_and_varied_by_it():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    sample = make_sample(image, np.array([[10, 10, 60, 50]]), np.array([0]))
    augment = DetrAugment(scales=(60, 80), max_size=110, crop_scales=(50,), crop_min=24, crop_max=40)
    results = [augment.train(sample, np.random.default_rng(seed)) for seed in [*range(30), *range(30)]]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(results[:30], results[30:], strict=True))
    assert len({result.image.size for result in results}) > 10


@given(st.integers(0, 2**32), st.integers(4, 90), st.integers(4, 90), st.integers(4, 150), st.integers(4, 150))
@settings(max_examples=60)
def test_a_crop_of_what_is_resized_needs_no_other_pixels(seed, height, width, new_height, new_width):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    sample = make_sample(image, np.array([[0, 0, width, height], [1, 1, 3, 2]]), np.array([0, 1]))
    high, wide = rng.integers(1, new_height + 1), rng.integers(1, new_width + 1)
    part = (int(rng.integers(new_height - high + 1)), int(rng.integers(new_width - wide + 1)), int(high), int(wide))
    whole = crop(resize(sample, (new_height, new_width)), *part)
    alone = crop_resized(sample, (new_height, new_width), *part)
    assert alone.size == whole.size == part[2:]
    assert torch.equal(alone.boxes, whole.boxes)
    assert torch.equal(alone.labels, whole.labels)
    difference = np.abs(np.asarray(alone.image, dtype=int) - np.asarray(whole.image, dtype=int))
    assert difference.max() <= 3  # of noise, where a place between pixels is rounded otherwise


def test_a_slender_image_is_not_made_a_long_one_before_it_is_cropped(monkeypatch):
    """600 high it would have 360 million pixels, a gigabyte of them."""
    sizes, resize_image = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: sizes.append(a[1]) or resize_image(*a, **k))
    sample = make_sample(Image.new("RGB", (5000, 5)), np.array([[0, 0, 2500, 5]]), np.array([0]))
    for seed in range(3):
        DetrAugment(crop=1.0).train(sample, np.random.default_rng(seed))
    assert max(max(size) for size in sizes) <= 1400


def test_evaluation_resizes_without_chance():
    image = Image.new("RGB", (640, 480))
    assert DetrAugment().evaluate(image).size == (1066, 800)


@pytest.mark.parametrize("augment", [NoAugment(), FlipAugment()])
def test_photographs_are_brought_down_and_small_images_stay(augment):
    for size in ((96, 96), (112, 80), (1333, 1333), (640, 480)):
        image = Image.new("RGB", size)
        assert augment.evaluate(image) is image
    assert augment.evaluate(Image.new("RGB", (4000, 3000))).size == (1333, 1000)
    assert augment.evaluate(Image.new("RGB", (3000, 4000))).size == (1000, 1333)
    assert augment.evaluate(Image.new("RGB", (2, 9000))).size == (1, 1333)


@given(one_object(), st.integers(8, 80))
def test_training_sees_the_sizes_of_evaluation(sample, longest):
    rng = np.random.default_rng(0)
    for augment in (NoAugment(max_size=longest), FlipAugment(flip=0, max_size=longest)):
        changed = augment.train(sample, rng)
        assert np.array_equal(changed.image, augment.evaluate(sample.image))
        assert np.allclose(relative(changed), relative(sample), atol=1e-5)


def test_crop_bounds_are_checked():
    with pytest.raises(DataError, match="crop_min is 700"):
        DetrAugment(crop_min=700)
