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
from tests.engine.toys import ToyCriterion, toy_trainer


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


def dense(images=2000, **options):
    augment = part(DenseAugment, images=NoAugment(), from_epoch=1, until_epoch=3, **options)
    return ShapesSource(augment=augment, image_size=64, train_images=images, val_images=8)


def test_the_epochs_say_when_there_are_more_objects():
    plain, source = ShapesSource(augment=part(NoAugment), image_size=64), dense(mosaic=0.0, mixup=1.0)
    mixed = [sum(len(source.train[i, e, 3].labels) for i in range(8)) for e in range(5)]
    before = sum(len(plain.train[i, 0, 3].labels) for i in range(8))
    assert [count > before for count in mixed] == [False, True, True, False, False]
    assert mixed[0] == mixed[3] == mixed[4] == before
    assert len(source.val[0, 1, 3].labels) == len(plain.val[0, 1, 3].labels)


def test_a_sample_depends_on_nothing_that_came_before():
    source = dense()
    alone = [source.train[i, 1, 3] for i in range(12)]
    again = [dense().train[i, 1, 3] for i in reversed(range(12))][::-1]
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes) for a, b in zip(alone, again, strict=True)
    )
    assert {a.image.shape for a in alone} == {(3, *size) for size in source.train.training_sizes(1, 3)[:12].tolist()}


def test_batches_are_the_same_from_workers_and_after_those_that_are_skipped():
    source = dense(images=12)
    alone, from_workers = (list(source.loader(batch_size=4, epoch=1, seed=3, workers=n)) for n in (0, 2))
    rest = list(source.loader(batch_size=4, epoch=1, seed=3, skip=1, workers=2))
    assert (len(alone), len(rest)) == (3, 2)
    for one, other in [*zip(alone, from_workers, strict=True), *zip(alone[1:], rest, strict=True)]:
        assert torch.equal(one.images, other.images)
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(one.targets, other.targets, strict=True))


class Counted(ToyCriterion):
    """Notes the objects of each step, and ends the training before one of them."""

    def __init__(self, until=None):
        super().__init__()
        self.objects, self.until = [], until

    def forward(self, output, targets, objects, images):
        if len(self.objects) == self.until:
            raise KeyboardInterrupt
        self.objects.append([len(target["labels"]) for target in targets])
        return super().forward(output, targets, objects, images)


def test_the_epochs_without_are_kept_by_a_resumed_training(tmp_path):
    """Five epochs of two steps, mixed in the second and the third; cut in the third."""

    class Source:
        categories, images = dense().categories, 8
        train = dense(images=8).train
        loader = staticmethod(dense(images=8, mosaic=0.0, mixup=1.0).loader)

    def trainer(folder, until=None):
        return toy_trainer(tmp_path / folder, source=Source(), criterion=Counted(until), epochs=5, drop_epochs=())

    whole, cut = trainer("whole"), trainer("cut", until=5)
    assert whole.fit().finished
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    resumed = trainer("cut")
    resumed.resume()
    assert resumed.fit().finished
    steps = whole.criterion.objects
    done = resumed.at.step - len(resumed.criterion.objects)
    assert done == 4
    assert resumed.criterion.objects == steps[done:]
    epochs = [sum(map(sum, steps[i : i + 2])) for i in range(0, 10, 2)]
    assert epochs[0] == epochs[3] == epochs[4] < min(epochs[1], epochs[2])


def test_epochs_that_are_none_are_refused():
    with pytest.raises(DataError, match="until_epoch is 4, so that no epoch has mosaic"):
        DenseAugment(from_epoch=4, until_epoch=4)
