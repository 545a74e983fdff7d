"""Mosaic and mixup: boxes stay on their objects, sizes stay, and each sample depends on seed, epoch and index alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.dense import DenseAugment, mixup, mosaic
from detrkit.data.shapes import ShapesSource
from detrkit.data.transforms import NoAugment, make_sample
from detrkit.errors import DataError
from tests.data.conftest import part


def rectangle(shade, height=64, width=96, box=(24, 16, 72, 48)):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = shade
    return make_sample(Image.fromarray(pixels), np.array([box]), np.array([shade]))


@pytest.mark.parametrize("seed", range(20))
def test_a_mosaic_s_boxes_are_where_the_pixels_are(seed):
    shades = [100, 150, 200, 250]
    sizes = [(64, 96), (40, 96), (96, 64), (128, 192)]
    samples = [
        rectangle(s, h, w, (w // 4, h // 4, 3 * w // 4, 3 * h // 4)) for s, (h, w) in zip(shades, sizes, strict=True)
    ]
    made = mosaic(samples, np.random.default_rng(seed))
    assert (made.image.height, made.image.width) == (64, 96)
    pixels = np.asarray(made.image)[..., 0]
    for box, shade in zip(made.boxes.tolist(), made.labels.tolist(), strict=True):
        left, top, right, bottom = box
        inside = pixels[round(top) : round(bottom), round(left) : round(right)]
        if min(inside.shape) < 4:  # an edge, which resizing blurs
            continue
        assert np.median(inside) == pytest.approx(shade, abs=12)
    for shade in set(shades) - set(made.labels.tolist()):
        assert (pixels == shade).sum() < 64  # what has no box has all but left the image


def test_mixup_lays_two_images_over_each_other():
    made = mixup(rectangle(200), rectangle(100, 128, 192, (0, 0, 48, 32)), np.random.default_rng(0))
    assert made.boxes.tolist() == [[24, 16, 72, 48], [0, 0, 24, 16]]
    assert made.labels.tolist() == [200, 100]
    pixels = np.asarray(made.image)[..., 0]
    assert 90 <= pixels[32, 48] <= 110
    assert 45 <= pixels[4, 4] <= 55
    assert pixels[60, 90] == 0


def dense(**options):
    return ShapesSource(augment=part(DenseAugment, images=NoAugment(), from_epoch=1, until_epoch=3, **options))


def test_the_epochs_say_when_there_are_more_objects():
    plain, source = ShapesSource(augment=part(NoAugment)), dense(mosaic=0.0, mixup=1.0)
    mixed = [sum(len(source.train[i, e, 3].labels) for i in range(8)) for e in range(5)]
    before = sum(len(plain.train[i, 0, 3].labels) for i in range(8))
    assert [count > before for count in mixed] == [False, True, True, False, False]
    assert mixed[0] == mixed[3] == mixed[4] == before
    assert len(source.val[0, 1, 3].labels) == len(plain.val[0, 1, 3].labels)


def test_samples_are_the_same_in_workers_and_after_a_resume():
    source = dense()
    alone = [source.train[i, 1, 3] for i in range(12)]
    again = [dense().train[i, 1, 3] for i in reversed(range(12))][::-1]
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes) for a, b in zip(alone, again, strict=True)
    )
    assert {a.image.shape for a in alone} == {(3, *size) for size in source.train.training_sizes(1, 3)[:12].tolist()}


def test_epochs_that_are_none_are_refused():
    with pytest.raises(DataError, match="until_epoch is 4, so that no epoch has mosaic"):
        DenseAugment(from_epoch=4, until_epoch=4)
