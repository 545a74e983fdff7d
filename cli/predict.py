"""`detrkit predict`: a trained detector on image files and videos."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, Trust, Weights, Which

if TYPE_CHECKING:
    from detrkit.predict import Prediction
    from detrkit.video import VideoWriter


def predict(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's folder; a recipe, with --weights; or an exported file."),
    ],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Images, folders of images, videos.")],
    out: Annotated[Path, typer.Option(help="Folder for what is drawn and predictions.json.")],
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest score that is kept.")] = 0.3,
    points: Annotated[bool, typer.Option("--points", help="Also draw the salient points.")] = False,
    which: Which = None,
    weights: Weights = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 4,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Draw what a trained detector finds on images or videos: boxes, names and scores.

    predictions.json holds the detections as COCO results, images.json the images that its image_id counts: of a
    video each frame, with its number and time in seconds. Videos want the extra `video` and are drawn without sound.
    A file that cannot be read or drawn is named and passed over; the exit code is then 1.
    """
    from detrkit.errors import UserError
    from detrkit.predict import Unreadable, find_images, of_categories, with_frames
    from detrkit.predict import predict as run_prediction
    from detrkit.predictor import load
    from detrkit.wording import counted
    from detrkit.writing import check_folder, write_text

    from .console import Console, print_notes, tracked

    if out.resolve() in {given.resolve() for given in inputs}:
        raise UserError(f"--out {out} is where the images are; choose another folder for their drawings")
    images = find_images(inputs, leave_out=out)
    pictures = _picture_paths([below for _, below in images], out)
    taken = {path.resolve() for path, _ in images}
    if clash := next((picture for picture in pictures if picture.resolve() in taken), None):
        raise UserError(f"{clash} would be replaced by its own drawing; choose another folder with --out")
    for folder in dict.fromkeys([out, *(picture.parent for picture in pictures)]):
        check_folder(folder, "--out")
    total = _count([path for path, _ in images])
    drawings = dict(zip((path for path, _ in images), pictures, strict=True))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        predictor = load(run, which=which, weights=weights, device=device, precision=None, trust=trust)
    names = [category.name for category in predictor.categories]
    ids = [None if category.is_placeholder else category.id for category in predictor.categories]

    console = Console()
    print_notes(console, [str(note.message) for note in notes])
    rows: list[dict] = []
    table: list[dict] = []
    broken, undrawn, best = 0, 0, 0.0

    def tell(line: str) -> None:
        console.print(line, style="red", soft_wrap=True)

    def write() -> None:
        write_text(out / "predictions.json", json.dumps(rows, ensure_ascii=False))
        used = [{"id": category.id, "name": category.name} for category in predictor.categories]
        whole = {"images": table, "categories": used}
        write_text(out / "images.json", json.dumps(whole, ensure_ascii=False, indent=1))

    stream = run_prediction(
        predictor.detector,
        with_frames(path for path, _ in images),
        transform=predictor.transform,
        threshold=0.0,  # what is below is not kept, but the best of it is told
        batch_size=batch,
        device=predictor.device,
        precision=predictor.precision,
    )
    shown = tracked(console, stream, "detecting", total)
    try:
        for path, entries in groupby(shown, key=lambda entry: entry.path):
            with _Drawing(drawings[path]) as drawing:
                for entry in entries:
                    if isinstance(entry, Unreadable):
                        broken += 1
                        tell(f"{path}: {entry.reason}")
                        continue
                    if points and "points" not in entry.result:
                        raise UserError(f"--points: this detector has none ({predictor.title})")
                    result = of_categories(entry.result, ids)
                    best = max([best, *result["scores"].tolist()])
                    kept = result["scores"] >= threshold
                    entry = replace(entry, result={name: values[kept] for name, values in result.items()})
                    rows += _coco_rows(entry, ids)
                    table.append(_image_row(entry))
                    drawing.add(entry, names, threshold=threshold, points=points)
            if drawing.fault:
                undrawn += 1
                tell(f"{path} could not be drawn: {drawing.fault}")
    except BaseException:  # an interruption too
        if table:
            write()
        raise
    write()
    on_frames = sum("frame" in row for row in table)
    on = [counted(n, what) for n, what in ((len(table) - on_frames, "image"), (on_frames, "frame")) if n]
    told = (
        f"{counted(len(rows), 'detection')} from {threshold:g} on {' and '.join(on) or 'no images'}, written to {out}"
    )
    if table and not rows:
        told += f"; the best score was {best:.3f}, so try a lower --threshold"
    if predictor.precision == "bf16":
        told += "; computed in bf16"
    console.print(told, soft_wrap=True)
    for count, what in ((broken, "read"), (undrawn, "drawn; predictions.json has what was found there")):
        if count:
            tell(f"{count} of {counted(len(images), 'file')} could not be {what}")
    if broken or undrawn:
        raise typer.Exit(1)


class _Drawing:
    """The drawing of an image, or of a video's frames, which stand together and become one again.

    Whatever goes wrong with it is kept in `fault` and ends nothing: what was found is worth more than its picture.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path, ""
        self._video: VideoWriter | None = None

    def __enter__(self) -> _Drawing:
        return self

    def add(self, entry: Prediction, names: list[str], *, threshold: float, points: bool) -> None:
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


def _picture_paths(below: list[Path], out: Path) -> list[Path]:
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


def _count(paths: list[Path]) -> int | None:
    """How many images and frames there are, about; None where a video does not say."""
    from detrkit.errors import DataError
    from detrkit.video import count_frames, is_video

    total = 0
    for path in paths:
        try:
            frames = count_frames(path) if is_video(path) else 1
        except DataError:
            frames = 1  # named when its turn comes
        if frames is None:
            return None
        total += frames
    return total


def _coco_rows(entry: Prediction, ids: list[int | None]) -> list[dict]:
    from detrkit.evaluation.evaluate import coco_detections

    rows = coco_detections(entry.index + 1, entry.result, ids)
    salient = entry.result.get("points")
    if salient is not None:
        for row, point in zip(rows, salient.tolist(), strict=True):
            row["point"] = [round(value, 3) for value in point]
    return [row | _place(entry) for row in rows]


def _image_row(entry: Prediction) -> dict:
    width, height = entry.image.size
    return {"id": entry.index + 1, **_place(entry), "width": width, "height": height}


def _place(entry: Prediction) -> dict:
    place = {"file_name": str(entry.path)}
    return place if entry.frame is None else place | {"frame": entry.frame.number, "time": round(entry.frame.time, 4)}
