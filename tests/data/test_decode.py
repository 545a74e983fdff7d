"""One door for all kinds of image files, and clear words about broken ones."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, features

from detrkit.data.decode import decode, stored_size
from detrkit.errors import DataError

from .conftest import UNDO


@pytest.fixture
def scene():
    """12 x 20 pixels: dark left, bright right, with a red corner at the top left."""
    pixels = np.zeros((12, 20, 3), dtype=np.uint8)
    pixels[:, 10:] = 200
    pixels[:4, :4] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photographs_are_turned_upright(tmp_path, scene, orientation, suffix):
    stored = scene
    for step in UNDO.get(orientation, []):
        stored = stored.transpose(step)
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)
    assert np.array_equal(np.asarray(decode(path)), np.asarray(scene))
    assert stored_size(path) == (12, 20)


def test_annotations_that_ignore_the_rotation_get_the_stored_image(tmp_path, scene):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.save(tmp_path / "a.png", exif=exif)
    assert decode(tmp_path / "a.png").size == (12, 20)
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png", size=(12, 20))), np.asarray(scene))
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png", exif="stored")), np.asarray(scene))
    assert decode(tmp_path / "a.png", size=(20, 12), exif="stored").size == (12, 20)  # the size decides
    assert stored_size(tmp_path / "a.png") == (20, 12)
    assert stored_size(tmp_path / "a.png", exif="stored") == (12, 20)


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "tif"), ("LA", "png")])
def test_colour_modes_become_rgb(tmp_path, scene, mode, suffix):
    scene.convert(mode).save(tmp_path / f"a.{suffix}")
    image = decode(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    assert image.getpixel((2, 10))[1] < 20
    assert image.getpixel((15, 6))[1] > 150


def test_transparent_pixels_lie_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.save(tmp_path / "b.png", transparency=0)
    assert decode(tmp_path / "b.png").getpixel((1, 1)) == (255, 255, 255)


def test_one_colour_may_be_the_transparent_one(tmp_path):
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0] = (9, 8, 7)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(9, 8, 7))
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png"))[:, 0], [[255, 255, 255], [0, 0, 0]])


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0, 1, (0, 255)), (0, 0.5, (0, 128)), (0, 255, (0, 255)), (0, 65535, (0, 255)), (-2, 2, (0, 255))],
)
def test_floats_keep_the_scale_that_they_are_on(tmp_path, low, high, shown):
    Image.fromarray(np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tif")
    grey = np.asarray(decode(tmp_path / "a.tif"))
    assert (grey.min(), grey.max()) == shown


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    grey = np.asarray(decode(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(grey[..., 0].ravel() - np.arange(256)).max() <= 1


def test_broken_files_are_named(tmp_path, scene):
    whole = io.BytesIO()
    scene.resize((200, 120)).save(whole, "JPEG")
    cases = {"cut.jpg": whole.getvalue()[:-800], "text.jpg": b"not an image", "empty.png": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            decode(tmp_path / name)
    with pytest.raises(DataError, match=r"text\.jpg: cannot be read"):
        stored_size(tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"missing\.jpg: no such image"):
        decode(tmp_path / "missing.jpg")
    scene.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 20 x 12 pixels, but its annotations are for 30 x 12"):
        decode(tmp_path / "a.png", size=(12, 30))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_broken_file_of_a_plug_in_is_named(tmp_path, scene):
    whole = io.BytesIO()
    scene.resize((200, 120)).save(whole, "AVIF")
    content = whole.getvalue()
    said = []
    for place in range(40, 400, 4):  # somewhere here are a header and a frame that raise a RuntimeError
        (tmp_path / "bad.avif").write_bytes(content[:place] + b"\xff" * 4 + content[place + 4 :])
        for read in (decode, stored_size):
            try:
                read(tmp_path / "bad.avif")
            except DataError as error:
                said.append(str(error))
    assert any("Failed to decode" in text for text in said)
    assert all("bad.avif: cannot be read as an image: " in text for text in said)


def test_a_very_large_image_is_refused_in_words_and_a_large_one_read_in_silence(tmp_path, scene, monkeypatch):
    scene.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (decode, stored_size):
        with pytest.raises(DataError, match=r"a\.png: has more than .* million pixels; make it smaller"):
            read(tmp_path / "a.png")
    script = f"""if 1:
        from PIL import Image, features
        from detrkit.data.decode import decode
        Image.MAX_IMAGE_PIXELS = 200
        print(decode({str(tmp_path / "a.png")!r}).size)
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("(20, 12)", "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes among files")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (decode, stored_size):
        with pytest.raises(DataError, match=r"a.png: is no file but a folder, a pipe or a device"):
            read(tmp_path / "a.png")
