import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detrkit.cli.prediction_files import Findings, drawing_paths
from detrkit.data.records import Category
from detrkit.data.transforms import FlipAugment
from detrkit.errors import DataError, UserError
from detrkit.predict import Prediction, Unreadable, find_images, predict


class Brightness(nn.Module):
    """Finds one box over the whole image, scored by the mean of its unpadded pixels, and one below the threshold."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def detect(self, images, mask, sizes):
        self.batches.append(tuple(images.shape))
        results = []
        for index, (image, (height, width)) in enumerate(zip(images, sizes.tolist(), strict=True)):
            here = image[0] if mask is None else image[0][~mask[index]]
            results.append(
                {
                    "scores": torch.stack([(here.mean() / 10 + 0.5).clamp(0, 1), torch.tensor(0.1)]),
                    "labels": torch.tensor([1, 0]),
                    "boxes": torch.tensor([[0.0, 0, width, height], [1, 1, 2, 2]]),
                    "points": torch.tensor([[width / 2, height / 2], [1, 1]]),
                }
            )
        return results


@pytest.fixture
def folder(tmp_path):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    Image.new("RGB", (40, 30), "white").save(photos / "b.png")
    Image.new("L", (20, 50), 0).save(photos / "more" / "c.JPG")
    (photos / "a broken one.jpg").write_bytes(b"\xff\xd8 this is no image")
    (photos / "notes.txt").write_text("not meant")
    (photos / ".hidden.png").write_bytes(b"")
    turned = Image.new("RGB", (60, 24), "grey")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(photos / "d.jpg", exif=exif)
    return photos


def test_find_images(folder):
    found = find_images([folder])
    assert [below.as_posix() for _, below in found] == ["a broken one.jpg", "b.png", "d.jpg", "more/c.JPG"]
    again = find_images([folder / "more", folder / "b.png", folder])
    assert [below.as_posix() for _, below in again] == ["c.JPG", "b.png", "a broken one.jpg", "d.jpg"]
    apart = find_images([folder], leave_out=folder / "more")
    assert [below.as_posix() for _, below in apart] == ["a broken one.jpg", "b.png", "d.jpg"]
    around = find_images([folder], leave_out=folder.parent)  # drawings go beside the folder: `--out .`
    assert around == found


class LikesLarge(Brightness):
    """Refuses batches that are lower than 40 pixels, as an OpenVINO file does whose layers cannot take them."""

    def detect(self, images, mask, sizes):
        if images.shape[-2] < 40:
            raise DataError(f"takes no images of {images.shape[-2]} x {images.shape[-1]} pixels")
        return super().detect(images, mask, sizes)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_images_that_a_detector_does_not_take_are_left_out(batch_size):
    images = [Image.new("RGB", size) for size in ((30, 20), (40, 35), (50, 60), (40, 35), (50, 50))]
    transform = FlipAugment(max_size=100).evaluate
    found = list(predict(LikesLarge(), images, transform=transform, batch_size=batch_size))
    assert [one.index for one in found] == [0, 1, 2, 3, 4]
    assert [one.index for one in found if isinstance(one, Prediction)] == [2, 4]
    refused = [one.reason for one in found if isinstance(one, Unreadable)]
    assert refused == [f"takes no images of {h} x {w} pixels" for w, h in ((30, 20), (40, 35), (40, 35))]


class Shares(Brightness):
    """Takes the whole batch for the image, as published systems take its padding in one part or another."""

    def detect(self, images, mask, sizes):
        return super().detect(images, None, sizes)


def test_what_is_found_on_an_image_does_not_depend_on_those_beside_it():
    images = [Image.new("RGB", size, "white") for size in ((96, 96), (300, 200), (96, 96), (96, 97), (300, 200))]
    alone = [next(iter(predict(Shares(), [image], transform=lambda image: image))) for image in images]
    seen = Shares()
    for one, other in zip(predict(seen, images, transform=lambda image: image, batch_size=4), alone, strict=True):
        assert one.result["scores"].tolist() == pytest.approx(other.result["scores"].tolist())
    assert seen.batches == [(2, 3, 96, 96), (1, 3, 200, 300), (1, 3, 97, 96), (1, 3, 200, 300)]  # like ones at once


def test_folders_behind_links_are_looked_into_once(folder, tmp_path):
    (tmp_path / "others").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "others" / "e.png")
    (tmp_path / "others" / "back").symlink_to(folder)
    (folder / "linked").symlink_to(tmp_path / "others")
    found = [below.as_posix() for _, below in find_images([folder])]
    assert found == ["a broken one.jpg", "b.png", "d.jpg", "linked/e.png", "more/c.JPG"]


def test_nothing_to_be_found(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no images found .*accepted in folders are \.jpg.*a video is named"):
        find_images([tmp_path])
    for address in ("https://example.com/a.jpg", "rtsp://10.0.0.1:554/live"):
        with pytest.raises(UserError, match=f"^{address}: images and videos are not fetched here"):
            find_images([address])
    with pytest.raises(UserError, match="there is no such file or folder"):
        find_images([tmp_path / "b"])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 9])
def test_predict_in_order_with_a_broken_file(folder, batch_size):
    paths = [path for path, _ in find_images([folder])]
    seen = Brightness()
    entries = list(predict(seen, paths, transform=lambda image: image, threshold=0.2, batch_size=batch_size))
    assert [entry.index for entry in entries] == [0, 1, 2, 3]
    broken, white, turned, black = entries
    assert isinstance(broken, Unreadable)
    assert broken.path == paths[0]
    assert "cannot be read as an image" in broken.reason
    assert all(isinstance(entry, Prediction) for entry in entries[1:])
    assert white.result["boxes"].tolist() == [[0, 0, 40, 30]]  # the second detection is below the threshold
    assert white.result["labels"].tolist() == [1]
    assert white.result["points"].tolist() == [[20, 15]]
    assert turned.image.size == (24, 60)  # upright
    assert turned.result["boxes"].tolist() == [[0, 0, 24, 60]]
    # The score does not depend on what is detected with it.
    assert white.result["scores"].item() == pytest.approx((1 - 0.485) / 0.229 / 10 + 0.5, abs=1e-5)
    assert black.result["scores"].item() == pytest.approx(-0.485 / 0.229 / 10 + 0.5, abs=1e-5)
    assert max(shape[0] for shape in seen.batches) <= batch_size


@pytest.mark.parametrize(
    ("transform", "seen"),
    [(lambda image: image.resize((400, 300)), (300, 400)), (FlipAugment(max_size=20).evaluate, (15, 20))],
)
def test_boxes_are_in_pixels_of_the_file_when_it_is_resized(folder, transform, seen):
    detector = Brightness()
    (entry,) = predict(detector, [folder / "b.png"], transform=transform, threshold=0.0)
    assert detector.batches == [(1, 3, *seen)]
    assert entry.result["boxes"][0].tolist() == [0, 0, 40, 30]
    assert len(entry.result["scores"]) == 2
    assert entry.image.size == (40, 30)


def test_many_images_keep_their_order(tmp_path):
    shades = np.random.default_rng(0).permutation(40) * 6
    paths = []
    for number, shade in enumerate(shades):
        paths.append(tmp_path / f"{number}.png")
        Image.new("L", (8, 8), int(shade)).save(paths[-1])
    entries = list(predict(Brightness(), paths, transform=lambda image: image, threshold=0.0, batch_size=3, readers=4))
    scores = [entry.result["scores"][0].item() for entry in entries]
    assert np.array_equal(np.argsort(scores), np.argsort(shades))


def test_every_drawing_has_a_path_of_its_own_in_order():
    below = [Path(name) for name in ("a.jpg", "a.jpg", "b/a.jpg", "a-2.jpg", "a.jpg", "c.webp", "c.webp.png")]
    names = [path.as_posix() for path in drawing_paths(below, Path("out"))]
    assert names == [
        f"out/{name}" for name in ("a.jpg", "a-2.jpg", "b/a.jpg", "a-2-2.jpg", "a-3.jpg", "c.webp.png", "c.webp-2.png")
    ]


@pytest.mark.parametrize("name", ["{}.jpg", "a.jpg"])
def test_paths_of_many_drawings_take_no_time(name):
    start = time.process_time()
    paths = drawing_paths([Path(name.format(number)) for number in range(8000)], Path("out"))
    assert len(set(paths)) == 8000
    assert time.process_time() - start < 4  # 0.1 s; seconds to minutes where each asks all before it


def test_an_open_image_may_be_given_several_times(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")  # it is read when its pixels are first asked for, by two threads
    for _ in range(3):
        given = [Image.open(tmp_path / "a.jpg")] * 4
        found = list(predict(Brightness(), given, transform=lambda image: image.resize((8, 8))))
        assert [one.image.getextrema() for one in found] == [given[0].getextrema()] * 4


def test_a_point_that_is_no_number_is_left_out():
    found = Findings([Category(1, "a")], threshold=0.3)
    result = {
        "scores": [0.9, 0.8],
        "labels": [0, 0],
        "boxes": [[0, 0, 5, 5]] * 2,
        "points": [[float("nan"), 1], [2, 1]],
    }
    tensors = {name: torch.tensor(values) for name, values in result.items()}
    found.add(Prediction(0, Path("a.png"), Image.new("RGB", (9, 9)), tensors))
    assert [row.get("point") for row in found.rows] == [None, [2, 1]]


def test_a_batch_without_memory_names_what_needs_less(folder):
    class Large(nn.Module):
        def detect(self, images, mask, sizes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.46 GiB.")

    given = [folder / "b.png", folder / "b.png"]
    with pytest.raises(UserError, match=r"2 images at once.*smaller batch_size .*--batch(.*\n)+.*1\.46 GiB"):
        list(predict(Large(), given, transform=lambda image: image))
    with pytest.raises(UserError, match=r"1 image at once.*memory\. A smaller one fits\.\n"):
        list(predict(Large(), given[:1], transform=lambda image: image))
