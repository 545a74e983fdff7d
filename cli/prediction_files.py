"""What `detrkit predict` writes: a drawing of each input, and the detections as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.wording import counted

if TYPE_CHECKING:
    from detrkit.data.records import Category
    from detrkit.predict import Prediction
    from detrkit.video import VideoWriter


class Findings:
    """The detections of all inputs from a score on, and the images that they are of.

    Args:
        categories: the detector's, in the order of its labels.
        threshold: the lowest score that is kept.
    """

    def __init__(self, categories: Sequence[Category], threshold: float) -> None:
        self.categories, self.threshold = categories, threshold
        self.ids = [None if category.is_placeholder else category.id for category in categories]
        self.rows: list[dict] = []
        self.images: list[dict] = []
        self.best = 0.0

    def add(self, entry: Prediction) -> Prediction:
        """Take what an image or a frame shows; the same with nothing but what is kept."""
        from detrkit.evaluation.evaluate import coco_detections
        from detrkit.predict import of_categories

        result = of_categories(entry.result, self.ids)
        self.best = max([self.best, *result["scores"].tolist()])
        kept = result["scores"] >= self.threshold
        entry = replace(entry, result={name: values[kept] for name, values in result.items()})
        rows = coco_detections(entry.index + 1, entry.result, self.ids)
        place: dict[str, Any] = {"file_name": str(entry.path)}
        if entry.frame is not None:
            place |= {"frame": entry.frame.number, "time": round(entry.frame.time, 4)}
        width, height = entry.image.size
        self.rows += [row | place for row in rows]
        self.images.append({"id": entry.index + 1, **place, "width": width, "height": height})
        return entry

    def write(self, out: Path) -> None:
        """Write predictions.json and images.json into a folder."""
        from detrkit.writing import write_text

        write_text(out / "predictions.json", json.dumps(self.rows, ensure_ascii=False))
        used = [{"id": category.id, "name": category.name} for category in self.categories]
        whole = {"images": self.images, "categories": used}
        write_text(out / "images.json", json.dumps(whole, ensure_ascii=False, indent=1))

    def __str__(self) -> str:
        frames = sum("frame" in image for image in self.images)
        on = [counted(n, what) for n, what in ((len(self.images) - frames, "image"), (frames, "frame")) if n]
        return f"{counted(len(self.rows), 'detection')} from {self.threshold:g} on {' and '.join(on) or 'no images'}"


class Drawing:
    """The drawing of an image, or of a video's frames, which stand together and become one again.

    Whatever goes wrong with it is kept in `fault` and ends nothing: what was found is worth more than its picture.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path, ""
        self._video: VideoWriter | None = None

    def __enter__(self) -> Drawing:
        return self

    def add(self, entry: Prediction, names: list[str], *, threshold: float, points: bool) -> None:
        """Draw an image, or a video's next frame, with what was found there."""
        from detrkit.drawing.predictions import draw_predictions
        from detrkit.drawing.saving import save_picture
        from detrkit.video import VideoWriter

        if self.fault:
            return
        try:
            picture = draw_predictions(entry.image, entry.result, names, threshold=threshold, points=points)
            if entry.frame is None:
                save_picture(picture, self.path)
                return
            if self._video is None:
                self._video = VideoWriter(self.path).__enter__()
            self._video.add(picture, entry.frame.time)
        except Exception as error:
            self._fail(error)

    def __exit__(self, *ending: Any) -> None:
        try:
            if self._video is not None:
                self._video.__exit__(*ending)
        except Exception as error:
            self._video = None
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        from detrkit.writing import explain

        if self._video is not None:  # half of a video is none
            with suppress(Exception):
                self._video.__exit__(type(error), error, None)
            self._video = None
        self.fault = explain(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def drawings_of(images: list[tuple[Path, Path]], out: Path) -> dict[Path, Path]:
    """Each input's drawing.

    Args:
        images: each input, and its path below the folder that was named.
        out: the folder for drawings.

    Raises:
        UserError: a drawing would take the place of an input, or a folder cannot be written to.
    """
    from detrkit.errors import UserError
    from detrkit.writing import check_folder, check_place

    paths, taken = drawing_paths([below for _, below in images], out), {path.resolve() for path, _ in images}
    if clash := next((path for path in paths if path.resolve() in taken), None):
        raise UserError(f"{clash} would be replaced by its own drawing; choose another folder with --out")
    check_folder(out, "--out")
    for folder in dict.fromkeys(path.parent for path in paths):
        check_place(folder, "--out")
    return dict(zip((path for path, _ in images), paths, strict=True))


def drawing_paths(below: list[Path], out: Path) -> list[Path]:
    """Where each drawing goes: the image's path below its folder, under ``out``, no two the same.

    Formats that only few programs show become PNG, and videos MP4.
    """
    from detrkit.video import is_video

    paths: dict[Path, int] = {}  # in order; the number to try next where another image wants the same path
    for image in below:
        ending = ".mp4" if is_video(image) else ".png"
        name = image.name if image.suffix.lower() in (".jpg", ".jpeg", ".png", ".mp4") else image.name + ending
        path = wanted = out / image.parent / name
        while path in paths:
            path = wanted.with_name(f"{wanted.stem}-{paths[wanted]}{wanted.suffix}")
            paths[wanted] += 1
        paths[path] = 2
    return list(paths)
