"""Video files, frame by frame: the package PyAV (extra `video`) reads and writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from detrkit.errors import DataError, UserError
from detrkit.writing import replaced_file

SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".avi",
    ".mkv",
    ".webm",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".ts",
    ".mts",
    ".m2ts",
    ".3gp",
    ".ogv",
)
TICKS = Fraction(1, 90_000)  # seconds; what times are written in
CODECS = ("libx264", "mpeg4")  # the first that PyAV was built with
LACKING = (0.5, 0.02)  # seconds, and share of what a header says, that an end may lack: headers are not exact


@dataclass(frozen=True)
class Frame:
    """One image of a video."""

    path: Path
    number: int
    """from 0"""
    time: float
    """seconds from the beginning"""
    image: Image.Image
    """RGB, upright"""


def is_video(path: Path | str) -> bool:
    """Whether a file is called as videos are."""
    return Path(path).suffix.lower() in SUFFIXES


def count_frames(path: Path) -> int | None:
    """About how many frames a video has, by its header; None where that does not say.

    Raises:
        UserError: PyAV is not installed
        DataError: the file is no video
    """
    with _opened(path) as (container, stream):
        if stream.frames:
            return stream.frames
        rate = stream.average_rate
        seconds = container.duration / 1e6 if container.duration else None
        return round(seconds * rate) if seconds and rate else None


def frames(path: Path) -> Iterator[Frame]:
    """The frames of a video in order, decoded as they are asked for.

    Raises:
        UserError: PyAV is not installed
        DataError: the file is no video, or damaged from some frame on, or ends before its header says
    """
    broken = _av(path).error.FFmpegError
    with _opened(path) as (container, stream):
        first: float | None = None
        end = 0.0
        decoded, number = container.decode(stream), 0
        while True:
            try:
                frame = next(decoded, None)
            except broken as error:
                raise DataError(f"{path}: cannot be decoded after {number} frames ({_reason(error)})") from None
            if frame is None:
                # A decoder with threads keeps what is wrong with the last frames to itself, and one of Matroska, too.
                told = _seconds(stream)
                if told is not None and told - end > max(LACKING[0], LACKING[1] * told):
                    raise DataError(
                        f"{path}: ends after {number} frames, at {end:.1f} of {told:.1f} seconds: it was cut short, or "
                        "is damaged there"
                    )
                return
            time = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
            first = time if first is None else first
            end = max(end, time + float((frame.duration or 0) * (frame.time_base or 0)))
            image = frame.to_image()
            if frame.rotation:  # counterclockwise, as PIL's: a telephone that was held upright
                image = image.rotate(frame.rotation, expand=True)
            yield Frame(path, number, time - first, image)
            number += 1


class VideoWriter:
    """Writes frames into an .mp4 file, without sound; as large as the first is, to an even number of pixels.

    A context: the file is there, whole, when it ends without an error and there was a frame.

    Raises UserError with the first frame if PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._open = path, ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def add(self, image: Image.Image, time: float) -> None:
        """Write an RGB image that is to be seen from `time` on, in seconds."""
        if self._container is None:
            self._begin(image.size)
        size = (self._stream.width, self._stream.height)
        if image.size != size:
            image = image.crop((0, 0, *size)) if _nearly(image.size, size) else image.resize(size)
        frame = _av(self._path).VideoFrame.from_image(image)
        self._last = max(self._last + 1, round(time / TICKS))  # times have to rise
        frame.pts, frame.time_base = self._last, TICKS
        self._container.mux(self._stream.encode(frame))

    def _begin(self, size: tuple[int, int]) -> None:
        av = _av(self._path)
        temporary = self._open.enter_context(replaced_file(self._path))
        self._container = self._open.enter_context(av.open(str(temporary), "w", format="mp4"))
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=30)
        self._stream.codec_context.time_base = TICKS  # frames come at their own times, whatever the rate
        self._stream.pix_fmt = "yuv420p"  # which every player shows, and which wants even sizes
        self._stream.width, self._stream.height = (max(2, side // 2 * 2) for side in size)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None and self._container is not None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._open.__exit__(kind, error, trace)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    av = _av(path)
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise DataError(f"{path}: cannot be read as a video ({_reason(error)})") from None
    with container:
        if not container.streams.video:
            raise DataError(f"{path}: holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _seconds(stream: Any) -> float | None:
    """When a stream ends, by its header; None where that does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # Matroska's own length is that of the longest stream, the sound perhaps; programs note each one's in a tag.
    parts = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return None if parts is None else 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3])


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise UserError(
            f"{path} is a video, and the package that reads and writes them is not installed: "
            "pip install 'detrkit[video]'"
        ) from None
    return av


def _nearly(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return all(0 <= a - b <= 1 for a, b in zip(size, other, strict=True))


def _reason(error: Any) -> str:
    return error.strerror or type(error).__name__
