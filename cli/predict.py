"""`detrkit predict`: a trained detector on image files and videos."""

from __future__ import annotations

import warnings
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Trust, Weights, Which


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
    batch: Annotated[int, typer.Option(min=1, help="Images at once, those of one size.")] = 4,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Draw what a trained detector finds on images or videos: boxes, names and scores.

    predictions.json holds the detections as COCO results, images.json the images that its image_id counts: of a
    video each frame, with its number and time in seconds. Videos want the extra `video` and are drawn without sound.
    A file that cannot be read or drawn is named and passed over; the exit code is then 1.
    """
    from detrkit.errors import UserError
    from detrkit.predict import Unreadable, find_images, with_frames
    from detrkit.predict import predict as run_prediction
    from detrkit.predictor import load
    from detrkit.wording import counted

    from .console import Console, print_notes, tracked
    from .prediction_files import Drawing, Findings, drawings_of

    if out.resolve() in {given.resolve() for given in inputs}:
        raise UserError(f"--out {out} is where the images are; choose another folder for their drawings")
    images = find_images(inputs, leave_out=out)
    drawings = drawings_of(images, out)
    total = _count(list(drawings))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        predictor = load(run, which=which, weights=weights, device=device, precision=None, trust=trust)
    names = [category.name for category in predictor.categories]

    console = Console()
    print_notes(console, [str(note.message) for note in notes])
    found = Findings(predictor.categories, threshold)
    unread, undrawn = 0, 0

    def tell(line: str) -> None:
        console.print(line, style="red", soft_wrap=True)

    stream = run_prediction(
        predictor.detector,
        with_frames(drawings),
        transform=predictor.transform,
        threshold=0.0,  # what is below is not kept, but the best of it is told
        batch_size=batch,
        device=predictor.device,
        precision=predictor.precision,
    )
    shown = tracked(console, stream, "detecting", total)
    try:
        for path, entries in groupby(shown, key=lambda entry: entry.path):
            with Drawing(drawings[path]) as drawing:
                for entry in entries:
                    if isinstance(entry, Unreadable):
                        unread += 1
                        tell(f"{path}: {entry.reason}")
                        continue
                    if points and "points" not in entry.result:
                        raise UserError(f"--points: this detector has none ({predictor.title})")
                    drawing.add(found.add(entry), names, threshold=threshold, points=points)
            if drawing.fault:
                undrawn += 1
                tell(f"{path} could not be drawn: {drawing.fault}")
    except BaseException:  # an interruption too
        if found.images:
            found.write(out)
        raise
    found.write(out)
    told = f"{found}, written to {out}"
    if found.images and not found.rows:
        told += f"; the best score was {found.best:.3f}, so try a lower --threshold"
    if predictor.precision != "fp32":
        told += f"; computed in {predictor.precision}"
    console.print(told, soft_wrap=True)
    for count, what in ((unread, "read"), (undrawn, "drawn; predictions.json has what was found there")):
        if count:
            tell(f"{count} of {counted(len(images), 'file')} could not be {what}")
    if unread or undrawn:
        raise typer.Exit(1)


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
