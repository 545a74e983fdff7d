"""Mosaic and mixup: boxes stay on their objects, sizes stay, and each sample depends on seed, epoch and index alone."""

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.data.by_epoch import AugmentByEpoch
from detrkit.data.dense import DenseAugment, mixup, mosaic
from detrkit.data.shapes import ShapesSource
from detrkit.data.square import SquareAugment
from detrkit.data.transforms import DetrAugment, NoAugment, make_sample
from detrkit.errors import DataError
from tests.data.conftest import CocoSource, box_entry, image_entry, part
from tests.engine.toys import ToyCriterion, toy_trainer


def rectangle(shade, height=64, width=96, box=(24, 16, 72, 48), label=None):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = shade
    return make_sample(Image.fromarray(pixels), np.array([box]), np.array([shade if label is None else label]))


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
        if min(inside.shape) < 6:  # an edge, which resizing blurs and zooming widens
            continue
        assert np.median(inside) == pytest.approx(shade, abs=12)
    for shade in set(shades) - set(made.labels.tolist()):
        assert (pixels == shade).sum() < 64  # what has no box has all but left the image


@pytest.mark.parametrize("seed", range(20))
def test_a_turned_mosaic_s_boxes_are_around_the_pixels(seed):
    """Each object has a colour of its own: its box ends where half of the colour does."""
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]])
    samples = [rectangle(colour, 256, 256, (64, 64, 192, 192), label) for label, colour in enumerate(colours)]
    made = mosaic(samples, np.random.default_rng(seed), turn=40.0)
    seen = {label: ((np.asarray(made.image) > 100) == (colour > 100)).all(-1) for label, colour in enumerate(colours)}
    for box, label in zip(made.boxes.tolist(), made.labels.tolist(), strict=True):
        rows, columns = np.nonzero(seen.pop(label))
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        inside = edges * [1, 1, -1, -1] > np.array(box) * [1, 1, -1, -1] - 2.5
        assert inside.all(), (box, edges)
        if min(box) > 0 and max(box) < 256:  # else a corner of the object is outside, and the box goes on to the edge
            assert np.allclose(box, edges, atol=2.5), (box, edges)
    assert not any(pixels.any() for pixels in seen.values())  # what has no box has left the image


def test_mixup_lays_two_images_over_each_other():
    made = mixup(rectangle(200), rectangle(100, 128, 192, (0, 0, 48, 32)), np.random.default_rng(0))
    assert made.boxes.tolist() == [[24, 16, 72, 48], [0, 0, 24, 16]]
    assert made.labels.tolist() == [200, 100]
    pixels = np.asarray(made.image)[..., 0]
    assert 90 <= pixels[32, 48] <= 110
    assert 45 <= pixels[4, 4] <= 55
    assert pixels[60, 90] == 0


def dense(images=2000, **options):
    """Two of five epochs, 1 and 2, have more objects."""
    stages = {"start": NoAugment(), "dense": part(DenseAugment, images=NoAugment(), **options), "end": NoAugment()}
    augment = part(AugmentByEpoch, stages=stages, changes=(1, 3))
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
    assert done == 5  # a Ctrl-C at once keeps what was trained before its step
    assert resumed.criterion.objects == steps[done:]
    epochs = [sum(map(sum, steps[i : i + 2])) for i in range(0, 10, 2)]
    assert epochs[0] == epochs[3] == epochs[4] < min(epochs[1], epochs[2])


def chosen(augment, epoch=0, seeds=400):
    return [augment.chosen(epoch, np.random.default_rng(seed)) for seed in range(seeds)]


def test_a_mosaic_and_a_mixture_may_meet():
    """Half of the images are mosaics, half are mixed, and so is what is laid over them."""
    both = chosen(DenseAugment(images=NoAugment()), seeds=4000)
    shares = {1: 1 / 4, 4: 1 / 4, 2: 1 / 8, 5: 1 / 4, 8: 1 / 8}
    counts = [one.others + 1 for one in both]
    for images, share in shares.items():
        assert counts.count(images) / len(counts) == pytest.approx(share, abs=0.025)
    made = DenseAugment(images=NoAugment(), mosaic=1.0, mixup=1.0)
    eight = chosen(made, seeds=1)[0].combine(
        rectangle(1), [rectangle(n) for n in range(2, 9)], np.random.default_rng(0)
    )
    labels = eight.labels.tolist()
    assert set(labels) & {1, 2, 3, 4}
    assert set(labels) & {5, 6, 7, 8}


def test_one_that_combines_may_follow_one_that_does():
    inner = DenseAugment(images=NoAugment(), mosaic=1.0, mixup=0.0)
    cropped = DenseAugment(images=SquareAugment(), mosaic=0.0, mixup=1.0)
    assert chosen(DenseAugment(images=cropped, mosaic=1.0, mixup=0.0), seeds=1)[0].usual.usual.crop == 0.0
    both = chosen(DenseAugment(images=inner, mosaic=0.0, mixup=1.0), seeds=1)[0]
    assert both.others == 4
    made = both.combine(rectangle(1), [rectangle(n) for n in range(2, 6)], np.random.default_rng(0))
    assert set(made.labels.tolist()) >= {1, 2}  # laid over each other first, then one of four
    assert set(made.labels.tolist()) & {3, 4, 5}


def test_an_image_that_cannot_be_combined_is_named(write_set):
    folder = write_set([image_entry(n) for n in range(1, 5)], [box_entry(n, n, [1, 1, 9, 9]) for n in range(1, 5)])
    (folder / "train" / "2.png").write_bytes(b"no image")
    augment = part(DenseAugment, images=NoAugment(), mosaic=1.0, mixup=0.0)
    source = CocoSource(root=str(folder), augment=augment, unreadable="skip")
    told = [source.train[0, epoch, 0].skipped for epoch in range(20)]
    assert any("2.png" in one for one in told)
    assert not all(told)


def test_what_is_very_large_is_combined_smaller():
    large = rectangle(200, 1500, 3000, (750, 375, 2250, 1125))
    assert mosaic([large] * 4, np.random.default_rng(0)).size == (666, 1333)
    assert mixup(large, large, np.random.default_rng(0)).boxes[0].tolist() == pytest.approx(
        [333, 166, 1000, 500], abs=1
    )


def test_what_follows_a_mosaic_may_differ():
    """It neither zooms out nor crops, by whatever augmentation; sizes, flips and colours are as without."""
    for images in (SquareAugment(scales=(48,), zoom_out=1.0, crop=1.0), DetrAugment(crop=1.0, scales=(48,))):
        augment = DenseAugment(images=images, mosaic=0.5, mixup=0.5)
        whole, seen = rectangle(200, 96, 96, (0, 0, 96, 96)), {True: set(), False: set()}
        for seed, one in enumerate(chosen(augment, seeds=60)):
            made = one.train(whole, np.random.default_rng(seed))
            areas = (made.boxes[:, 2:] - made.boxes[:, :2]).prod(1) / (made.size[0] * made.size[1])
            shades = np.asarray(made.image).max(-1)
            seen[one.others not in (0, 1)].add(bool(round(float(areas[0]), 2) == 1 and shades.min() > 0))
        assert seen[True] == {True}  # the whole image, whose one object fills it
        assert {one.usual.crop for one in chosen(augment) if one.others > 1} == {0.0}
        if isinstance(images, SquareAugment):
            assert False in seen[False]
        assert images.crop == 1.0  # what others have is as it was
    assert DenseAugment(images=NoAugment()).evaluate(rectangle(9).image).size == (96, 64)


def test_what_is_combined_may_be_decoded_as_large_as_it_can_be_there():
    augment = DenseAugment(images=DetrAugment(crop=0.0, scales=(64,)))
    wanted = {(one.others > 0, one.first_size(4000, 3000, np.random.default_rng(1))) for one in chosen(augment)}
    assert wanted == {(True, (1333, 1000)), (False, (85, 64))}
    assert {one.first_size(640, 480, np.random.default_rng(1)) for one in chosen(augment) if one.others} == {(640, 480)}


def test_a_stage_begins_at_its_epoch():
    stages = {f"of {side}": SquareAugment(scales=(side,), eval_size=side) for side in (16, 32, 48)}
    augment = AugmentByEpoch(stages=stages, changes=(2, 5))
    sizes = [
        augment.chosen(epoch, np.random.default_rng(0)).size(9, 9, np.random.default_rng(0))[0] for epoch in range(7)
    ]
    assert sizes == [16, 16, 32, 32, 32, 48, 48]
    assert augment.evaluate(rectangle(9).image).size == (48, 48)  # as at the end of the training


def test_the_published_stages_are_the_recipe_s():
    """DEIM, configs/deim_rtdetrv2/deim_r50vd_60e_coco.yml: strong augmentations in [4, 58), dense ones in [4, 34)."""
    augment = detrkit.load_recipe("rt_detr_deim_r50_60ep").section("data").parts["augment"]()
    combined = [any(one.others for one in chosen(augment, epoch, seeds=20)) for epoch in range(60)]
    assert [epoch for epoch in range(60) if combined[epoch]] == list(range(4, 34))
    image = rectangle(200, 96, 96, (24, 16, 72, 80))
    strong = []
    for epoch in (3, 4, 33, 34, 57, 58):
        made = [one.train(image, np.random.default_rng(seed)) for seed, one in enumerate(chosen(augment, epoch, 20))]
        areas = {
            round(float(((b[:, 2:] - b[:, :2]).prod(1) / one.size[0] ** 2)[0]), 3)
            for one in made
            if len(b := one.boxes.as_subclass(torch.Tensor))
        }
        strong.append(areas != {round(48 * 64 / 96**2, 3)})
    assert strong == [False, True, True, True, True, False]
    sides = [
        {one.size(96, 96, np.random.default_rng(seed)) for seed, one in enumerate(chosen(augment, epoch, 60))}
        for epoch in (57, 58)
    ]
    assert len(sides[0]) > 5
    assert sides[1] == {(640, 640)}


@pytest.mark.parametrize(
    ("stages", "changes", "said"),
    [
        ({"a": "none", "b": "flip"}, (), "2 stages want 1 changes between them, and there are 0"),
        ({"a": "none", "b": "flip", "c": "none"}, (4, 4), r"changes are \[4, 4\], and each has to be later"),
        ({}, (), "0 stages"),
    ],
)
def test_stages_without_their_epochs_are_refused(stages, changes, said):
    with pytest.raises(DataError, match=said):
        AugmentByEpoch(stages=stages, changes=changes)
