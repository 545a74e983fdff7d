"""RT-DETR's augmentation: squares whose boxes stay on their objects, drawn by the sample's generator alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from detrkit.data.shapes import ShapesSource
from detrkit.data.square import Colours, SquareAugment
from detrkit.data.transforms import make_sample
from tests.data.conftest import part

OBJECTS = ((8, 6, 40, 30, 90), (50, 20, 84, 56, 200))  # corners and brightness


def scene(height=64, width=96):
    pixels = np.full((height, width, 3), 20, dtype=np.uint8)
    for left, top, right, bottom, shade in OBJECTS:
        pixels[top:bottom, left:right] = shade
    boxes = np.array([one[:4] for one in OBJECTS])
    return make_sample(Image.fromarray(pixels), boxes, np.array([one[4] for one in OBJECTS]))


def test_boxes_stay_on_their_objects():
    augment = SquareAugment(scales=(48, 80), distort=0.0)
    sizes, numbers = set(), set()
    for seed in range(40):
        made = augment.train(scene(), np.random.default_rng(seed))
        assert made.size == (made.image.height, made.image.width)
        assert made.image.height == made.image.width
        sizes.add(made.image.height)
        numbers.add(len(made.labels))
        corners = made.boxes.as_subclass(torch.Tensor)
        assert (corners >= 0).all()
        assert (corners <= made.image.height + 1e-4).all()
        for box, shade in zip(corners.tolist(), made.labels.tolist(), strict=True):
            left, top, right, bottom = box
            inside = np.asarray(made.image)[round(top) : round(bottom), round(left) : round(right), 0]
            if min(inside.shape) >= 6:  # else blurred by resizing
                assert np.median(inside) == pytest.approx(shade, abs=12), seed
    assert sizes == {48, 80}
    assert numbers == {1, 2}  # a crop may lose an object, and never all of them


def test_what_is_switched_off_does_nothing():
    augment = SquareAugment(scales=(64,), distort=0.0, zoom_out=0.0, crop=0.0, flip=0.0, eval_size=32)
    made = augment.train(scene(64, 64 * 2), np.random.default_rng(0))
    expected = torch.tensor([[4.0, 6, 20, 30], [25, 20, 42, 56]])
    assert torch.equal(made.boxes.as_subclass(torch.Tensor), expected)
    assert augment.evaluate(scene().image).size == (32, 32)


def test_of_a_large_image_no_more_pixels_are_worked_on_than_can_be_seen():
    """A crop of 0.3 of the sides still has all that its square can show, and zooming out makes nothing larger."""
    augment, sides, largest = SquareAugment(scales=(48, 80), distort=0.0), [], []
    augment.colours = lambda image: sides.append(image.size) or image
    augment.cut = lambda *one: largest.append(one[0].size) or one
    for seed in range(60):
        made = augment.train(scene(1200, 1600), np.random.default_rng(seed))
        assert augment.first_size(1200, 1600, np.random.default_rng(seed)) == sides[-1][::-1]
        assert made.size == (made.image.height, made.image.width)
    assert max(sides) == (356, 267)  # 80 / 0.3
    assert max(largest) <= (360, 270)
    assert augment.first_size(40, 30, np.random.default_rng(0)) == (40, 30)  # smaller ones are left alone


def test_colours_are_torchvision_s():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    differ = 0
    for seed in range(12):
        torch.manual_seed(seed)
        expected = v2.RandomPhotometricDistort(p=0.5)(image)
        torch.manual_seed(seed)
        made = Colours(p=0.5)(image)
        assert np.array_equal(made, expected), seed
        differ += not np.array_equal(made, image)
    assert differ > 6


def test_objects_at_the_edge_stay_and_those_below_a_pixel_go():
    """Made smaller, a box may end a rounding beyond its image, which torchvision's own check of boxes drops."""
    augment = SquareAugment(scales=(16,), distort=0.0, zoom_out=0.0, crop=1.0)
    augment.cut = lambda *one: one
    for side in range(100, 160):
        boxes = np.array([[0, 0, side, 90], [10, 10, 10 + 0.9 * side / 16, 60]])
        made = augment.train(make_sample(Image.new("RGB", (side, 90)), boxes, np.arange(2)), np.random.default_rng(0))
        assert made.labels.tolist() == [0], side


def test_an_image_without_objects_stays_one():
    augment = SquareAugment(scales=(48,), zoom_out=1.0, crop=1.0)
    empty = make_sample(Image.new("RGB", (40, 30)), np.zeros((0, 4)), np.zeros(0))
    made = augment.train(empty, np.random.default_rng(0))
    assert (made.size, tuple(made.boxes.shape), len(made.labels)) == ((48, 48), (0, 4), 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (50, 3), (4, 4)])
def test_images_of_a_few_pixels_are_not_cropped_to_nothing(size):
    augment = SquareAugment(scales=(16,), zoom_out=0.0, crop=1.0)
    tiny = make_sample(Image.new("RGB", size), np.array([[0, 0, *size]]), np.zeros(1))
    for seed in range(30):
        assert augment.train(tiny, np.random.default_rng(seed)).size == (16, 16)


def test_chance_on_devices_is_left_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    SquareAugment(scales=(48,)).train(scene(), np.random.default_rng(0))
    assert seeded == []


def test_the_seed_decides_and_the_world_s_chance_is_left_alone():
    augment = SquareAugment(scales=(48, 80))
    torch.manual_seed(5)
    first = augment.train(scene(), np.random.default_rng(7))
    after = torch.rand(3)
    torch.manual_seed(6)
    again = augment.train(scene(), np.random.default_rng(7))
    assert torch.equal(first.boxes, again.boxes)
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_workers_change_nothing_and_sizes_are_foretold():
    source = ShapesSource(augment=part(SquareAugment, scales=(32, 48)), image_size=40, train_images=8, val_images=4)
    alone, from_workers = (list(source.loader(batch_size=4, epoch=1, seed=2, workers=n)) for n in (0, 2))
    for one, other in zip(alone, from_workers, strict=True):
        assert torch.equal(one.images, other.images)
    foretold = source.train.training_sizes(1, 2)
    assert [tuple(source.train[i, 1, 2].image.shape[1:]) for i in range(8)] == [tuple(row) for row in foretold.tolist()]
