"""Videos: their frames are images like others, in order and at their times, and come out as one again."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.errors import DataError, UserError
from detrkit.predict import Unreadable, predict, with_frames
from detrkit.video import VideoWriter, count_frames, frames, is_video

from .test_cli_output import call, run  # noqa: F401  (the fixture)
from .test_predict import Brightness

av = pytest.importorskip("av")

COUNT, RATE, SIZE = 9, 10, (80, 64)


def write_clip(path, count=COUNT, codec="libx264", grey=lambda number: 20 + 25 * number, early=False):
    """Grey frames, one brighter than the other, ten a second: by PyAV itself; an .mp4's header `early`, not last."""
    options = {"movflags": "faststart"} if early and path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(count):
            pixels = np.full((SIZE[1], SIZE[0], 3), grey(number), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def test_frames_come_in_order_at_their_times(clip):
    found = list(frames(clip))
    assert [frame.number for frame in found] == list(range(COUNT))
    assert [frame.time for frame in found] == pytest.approx([number / RATE for number in range(COUNT)])
    assert {frame.image.size for frame in found} == {SIZE}
    assert [frame.image.getpixel((40, 30))[0] for frame in found] == pytest.approx(
        [20 + 25 * number for number in range(COUNT)], abs=4
    )
    assert count_frames(clip) == COUNT
    assert is_video("A.MOV")
    assert is_video("00001.MTS")  # as camcorders call theirs
    assert not is_video("a.gif")  # an image of several, of which the first is meant


def test_a_telephone_that_was_held_upright(clip, tmp_path):
    """The header says by how much to turn: written here into the matrix of the track's header ("tkhd")."""
    content = bytearray(clip.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    quarter = [0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30]  # x' = -y, y' = x: clockwise
    content[at : at + 36] = b"".join(value.to_bytes(4, "big") for value in quarter)
    (tmp_path / "turned.mp4").write_bytes(content)
    assert next(frames(tmp_path / "turned.mp4")).image.size == (SIZE[1], SIZE[0])


def test_only_the_frames_that_are_needed_are_decoded(clip, monkeypatch):
    taken = []

    def counted(path):
        for frame in frames(path):
            taken.append(frame.number)
            yield frame

    monkeypatch.setattr("detrkit.predict.frames", counted)
    stream = predict(Brightness(), with_frames([clip]), transform=lambda image: image, batch_size=1)
    next(stream)
    assert len(taken) <= 3


def test_the_verb_draws_a_video_and_writes_frames_and_times(run, clip, tmp_path):  # noqa: F811
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "a.png")
    other = write_clip(tmp_path / "b.avi", count=2, codec="mpeg4")
    out = tmp_path / "drawn"
    result = call("predict", run, tmp_path / "a.png", clip, other, "--out", out, "--threshold", 0, "--batch", 2)
    assert result.exit_code == 0
    assert "on 1 image and 11 frames" in result.output
    names = {path.name for path in out.iterdir()}
    assert names == {"a.png", "clip.mp4", "b.avi.mp4", "images.json", "predictions.json"}
    drawn = list(frames(out / "clip.mp4"))
    assert [frame.time for frame in drawn] == pytest.approx([number / RATE for number in range(COUNT)], abs=1e-4)
    assert drawn[0].image.size == (512, 410)  # enlarged to be read
    images = json.loads((out / "images.json").read_text())["images"]
    assert [row["id"] for row in images] == list(range(1, 13))
    assert [row.get("frame") for row in images] == [None, *range(COUNT), 0, 1]
    assert images[4]["time"] == pytest.approx(0.3)
    rows = json.loads((out / "predictions.json").read_text())
    by_id = {row["id"]: row for row in images}
    assert {row["image_id"] for row in rows} == set(by_id)
    for row in rows:
        place = by_id[row["image_id"]]
        assert (row["file_name"], row.get("frame")) == (place["file_name"], place.get("frame"))


def test_from_python_frames_come_one_by_one_with_the_numbers_of_the_images(run, clip):  # noqa: F811
    predictor = detrkit.load(run, device="cpu")
    found = predictor.predict(str(clip), threshold=0.0, batch_size=2)
    assert not isinstance(found, list)
    found = list(found)
    assert [one.frame for one in found] == list(range(COUNT))
    assert found[3].time == pytest.approx(0.3)
    assert found[3].path == clip
    alone = predictor.predict(found[3].image, threshold=0.0)
    assert torch.allclose(alone.scores, found[3].scores, atol=1e-5)
    assert alone.frame is None
    with pytest.raises(UserError, match=r"clip\.mp4 is a video.*stream"):
        predictor.predict([found[3].image, clip])
    assert len(list(predictor.stream([found[3].image, clip], threshold=0.0))) == COUNT + 1


def test_what_is_no_video_is_named(run, clip, tmp_path):  # noqa: F811
    (tmp_path / "text.mp4").write_bytes(b"no video " * 50)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"text\.mp4: cannot be read as a video \(Invalid data"):
        next(frames(tmp_path / "text.mp4"))
    with pytest.raises(DataError, match=r"sound\.mp4: holds no video"):
        count_frames(tmp_path / "sound.mp4")
    files = [tmp_path / "text.mp4", clip, tmp_path / "sound.mp4"]
    result = call("predict", run, *files, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "2 of 3 files could not be read" in result.output
    assert "sound.mp4: holds no video" in result.output.replace("\n", " ")
    assert [path.name for path in (tmp_path / "out").glob("*.mp4")] == ["clip.mp4"]
    with pytest.raises(DataError, match="text"):
        next(detrkit.load(run, device="cpu").predict(tmp_path / "text.mp4"))
    with pytest.raises(UserError, match="there is no such file"):
        next(detrkit.load(run, device="cpu").predict("nowhere.mp4"))


def test_a_video_that_breaks_off_gives_the_frames_before(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mkv")
    error = av.error.InvalidDataError(1094995529, "Invalid data", "a.mkv")
    real = av.open

    class Damaged:
        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def __enter__(self):
            return self

        def __exit__(self, *details):
            self.container.close()

        def decode(self, stream):
            for number, frame in enumerate(self.container.decode(stream)):
                if number == 4:
                    raise error
                yield frame

    monkeypatch.setattr(av, "open", lambda path: Damaged(real(path)))
    found = list(predict(Brightness(), with_frames([clip]), transform=lambda image: image, batch_size=3))
    assert [entry.index for entry in found] == [0, 1, 2, 3, 4]
    assert isinstance(found[4], Unreadable)
    assert found[4].reason == "cannot be decoded after 4 frames (Invalid data)"


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_video_that_was_cut_short_is_told_and_a_whole_one_is_not(ending, tmp_path):
    """Most end without a word: a decoder with threads keeps the error of the last frame to itself."""
    codec = "mpeg4" if ending == "avi" else "libx264"
    whole = write_clip(tmp_path / f"a.{ending}", count=60, codec=codec, grey=lambda number: 4 * number, early=True)
    assert len(list(frames(whole))) == 60
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    found, told = [], "none"
    try:
        for frame in frames(cut):
            found.append(frame)
    except DataError as error:
        told = str(error)
    assert 0 < len(found) < 60
    ends = f"ends after {len(found)} frames, at {found[-1].time + 1 / RATE:.1f} of "
    assert told.startswith((f"{cut}: {ends}", f"{cut}: cannot be decoded after {len(found)} frames"))


def test_without_the_package_it_is_named(run, clip, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("detrkit.trained.open_trained", None)  # before any detector is opened
    with pytest.raises(UserError, match=r"clip\.mp4 is a video.*pip install 'detrkit\[video\]'"):
        call("predict", run, clip, "--out", tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    with VideoWriter(tmp_path / "none.mp4"):
        pass
    with pytest.raises(AttributeError), VideoWriter(tmp_path / "broken.mp4") as video:
        [video.add(image, 0.0) for image in (Image.new("RGB", (33, 21)), None)]
    assert list(tmp_path.iterdir()) == []
    with VideoWriter(tmp_path / "odd.mp4") as video:
        for time in (0.0, 0.0, Fraction(1, 3), 2.0):  # two at once, and not evenly
            video.add(Image.new("RGB", (33, 21)), float(time))
    found = list(frames(tmp_path / "odd.mp4"))
    assert {frame.image.size for frame in found} == {(32, 20)}
    assert [frame.time for frame in found] == pytest.approx([0.0, 0.0, 1 / 3, 2.0], abs=1e-4)
    assert Path(tmp_path / "odd.mp4").stat().st_size > 0
