"""JPEG files that are decoded with fewer pixels: the same image, the same boxes, and only where that is asked for."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.decode import decode
from detrkit.data.dense import DenseAugment
from detrkit.data.loader import SampleKey
from detrkit.data.square import SquareAugment
from detrkit.data.transforms import DetrAugment, FlipAugment, NoAugment, crop
from detrkit.errors import DataError

from .conftest import CATEGORIES, UNDO, CocoSource, box_entry, image_entry, part


def photograph(path, size, orientation=1, **options):
    """A smooth file of (height, width) upright, as a camera that was held so would store it."""
    down, right = (np.linspace(20, 230, side) for side in size)
    pixels = np.stack(
        [np.add.outer(down, right) / 2, np.add.outer(down, -right) / 2 + 127, np.outer(down, right) / 255]
    )
    scene = Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for step in UNDO.get(orientation, []):
        scene = scene.transpose(step)
    scene.save(path, exif=exif, quality=95, **options)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_photograph_is_the_whole_one_made_smaller(tmp_path, orientation, kind):
    size, wanted = (203, 333), (45, 74)  # at a quarter 51 x 84, the last row and column for less than a whole pixel
    path = photograph(tmp_path / "a.jpg", size, orientation, format=kind)
    whole = decode(path, size).resize(wanted[::-1], Image.Resampling.BILINEAR)
    reduced = decode(path, size, wanted=wanted)
    assert (reduced.height, reduced.width) == wanted
    difference = np.abs(np.asarray(whole, dtype=int) - np.asarray(reduced, dtype=int))
    assert difference.max() <= 3
    assert difference.any()  # it was not decoded whole
    stored = decode(path, size if orientation < 5 else size[::-1], exif="stored", wanted=wanted)
    assert (stored.height, stored.width) == wanted


@pytest.mark.parametrize("options", [{"format": "JPEG", "progressive": True}, {"format": "PNG"}])
def test_only_jpeg_files_at_least_twice_as_large_are_reduced(tmp_path, options):
    path = photograph(tmp_path / "a", (80, 120), **options)
    whole = decode(path)
    for wanted in [(41, 60), (40, 61), (80, 120), (300, 400)]:
        assert np.array_equal(decode(path, (80, 120), wanted=wanted), whole)
    assert (decode(path, (80, 120), wanted=(40, 60)).height == 40) == (options["format"] == "JPEG")


def test_a_reduced_file_is_held_to_its_annotations_too(tmp_path):
    path = photograph(tmp_path / "a.jpg", (81, 120))
    with pytest.raises(DataError, match="is 120 x 81 pixels, but its annotations are for 120 x 82"):
        decode(path, (82, 120), wanted=(20, 30))  # at a quarter both would be 21 high
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
        decode(path, (81, 120), wanted=(20, 30))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_files_of_other_colours_become_rgb(tmp_path, mode):
    path = tmp_path / "a.jpg"
    decode(photograph(path, (80, 120))).convert(mode).save(path, quality=95)
    whole = decode(path, (80, 120)).resize((30, 20), Image.Resampling.BILINEAR)
    reduced = decode(path, (80, 120), wanted=(20, 30))
    assert np.abs(np.asarray(whole, dtype=int) - np.asarray(reduced, dtype=int)).max() <= 3


AUGMENTS = {
    "detr": part(DetrAugment, scales=(48, 64), max_size=90, crop_scales=(50,), crop_min=24, crop_max=40, eval_size=48),
    "none": part(NoAugment, max_size=70),
    "flip": part(FlipAugment, max_size=70),
    "dense": part(DenseAugment, mosaic=0.7, mixup=0.7, images=NoAugment()),
    "square": part(SquareAugment, scales=(24, 32), distort=0.0, eval_size=48),
}


@pytest.fixture(scope="module", params=[1, 6])
def folder(request, tmp_path_factory):
    """Two photographs of 300 x 443, with two objects and with none."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "annotations").mkdir()
    entries = [image_entry(number, name=f"{number}.jpg", height=300, width=443) for number in (1, 2)]
    boxes = [box_entry(1, 1, [10, 20, 200, 200]), box_entry(2, 1, [300, 100, 143, 200])]
    for split in ("train", "val"):
        (folder / split).mkdir()
        text = json.dumps({"images": entries, "annotations": boxes, "categories": CATEGORIES})
        (folder / "annotations" / f"instances_{split}.json").write_text(text)
        for number in (1, 2):
            photograph(folder / split / f"{number}.jpg", (300, 443), request.param)
    return folder


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_sample_of_a_reduced_file_is_that_of_the_whole_one(folder, augment, monkeypatch):
    monkeypatch.setattr("detrkit.data.dense.LARGEST", 120)
    whole, reduced = (CocoSource(root=str(folder), augment=AUGMENTS[augment], reduced_jpeg=when) for when in WHEN)
    differ = 0
    for split, epochs in (("train", 8), ("val", 1)):
        pair = [getattr(source, split) for source in (whole, reduced)]
        for epoch in range(epochs):
            for index in (0, 1):
                one, other = (dataset[SampleKey(index, epoch, 3)] for dataset in pair)
                assert one.image.shape == other.image.shape
                assert torch.equal(one.boxes, other.boxes)
                assert torch.equal(one.labels, other.labels)
                assert one.size == other.size == (300, 443)
                difference = (one.image.int() - other.image.int()).abs()
                assert difference.float().mean() < 1
                assert difference.max() <= 6  # a jump of one pixel across the edge of the scene would be more
                differ += bool(difference.any())
    assert differ


WHEN = ("never", "always")


@pytest.mark.parametrize(("when", "splits"), [("never", ()), ("train", ("train",)), ("always", ("train", "val"))])
def test_only_the_named_splits_are_reduced(folder, monkeypatch, when, splits):
    seen = []
    monkeypatch.setattr(
        "detrkit.data.file_dataset.decode", lambda *a, wanted, **k: seen.append(wanted) or decode(*a, **k)
    )
    source = CocoSource(root=str(folder), augment=AUGMENTS["none"], reduced_jpeg=when)
    for split in ("train", "val"):
        seen.clear()
        getattr(source, split)[SampleKey(0)]
        assert (seen != [None]) == (split in splits)


def test_an_augmentation_of_ones_own_gets_all_pixels_unless_it_says_otherwise(folder):
    class Own(DetrAugment):
        def train(self, sample, rng):
            assert sample.image.size == (443, 300)
            return super().train(crop(sample, 10, 10, 280, 400), rng)

        def evaluate(self, image):
            assert image.size == (443, 300)
            return image

    source = CocoSource(root=str(folder), augment=part(Own, crop=0.0), reduced_jpeg="always")
    source.train[SampleKey(0)]
    source.val[SampleKey(0)]
