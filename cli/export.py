"""`detrkit export`: a detector as a file that runs without detrkit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Run, Trust, Weights, Which

TOLERANCE = 1e-3


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, .pt2, or .xml (with its .bin).")],
    format: Annotated[
        Literal["onnx", "torch-export", "openvino"] | None, typer.Option(help="As --out's ending says, if not given.")
    ] = None,
    weights: Weights = None,
    which: Which = None,
    pixels: Annotated[
        Literal["uint8", "normalised"], typer.Option(help="What goes in: RGB bytes, or normalised floats.")
    ] = "uint8",
    mask: Annotated[bool, typer.Option(help="Whether the padding mask is an input.")] = True,
    detections: Annotated[
        bool, typer.Option(help="Whether scores, labels and boxes in pixels come out, or the last layer's logits.")
    ] = True,
    check: Annotated[
        Path | None, typer.Option(metavar="IMAGES", help="An image or a folder to run the file on, beside PyTorch.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="With --check: how far scores, and boxes as shares of the image, may differ.",
            show_default=f"{TOLERANCE}",
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write a detector as a file that runs without detrkit: ONNX, a program of torch.export, or OpenVINO.

    Batch, height and width are free, and all that is needed to use it stands in its metadata. `detrkit predict` and
    `detrkit.load` take .onnx and .xml files as they take a run. With --check, the exit code is 1 where the file differs
    from PyTorch by more than the tolerance.
    """
    from time import perf_counter

    from detrkit.errors import UserError
    from detrkit.export.card import Card
    from detrkit.export.check import check as run_check
    from detrkit.export.form import ExportedForm, Form
    from detrkit.export.loading import open_written
    from detrkit.export.writing import SUFFIXES, require_packages, write
    from detrkit.predict import find_images
    from detrkit.trained import open_trained
    from detrkit.wording import counted
    from detrkit.writing import check_file

    from .console import Console

    if tolerance is not None and check is None:
        raise UserError("--tolerance goes with --check; without it nothing is compared")
    allowed = TOLERANCE if tolerance is None else tolerance
    kinds = {suffix: kind for kind, suffix in SUFFIXES.items()}
    kind = format or kinds.get(out.suffix.lower())
    if kind is None or out.suffix.lower() != SUFFIXES[kind]:
        wanted = SUFFIXES[kind] if kind else ", ".join(kinds)
        raise UserError(f"--out {out}: a file of {kind or 'an export'} ends in {wanted}")
    check_file(out, "--out")
    require_packages(kind, to_run=check is not None)
    images = [path for path, _ in find_images([check])] if check is not None else []
    trained = open_trained(run, (), which=which, weights=weights, trust=trust)
    form = ExportedForm(trained.detector, Form(pixels=pixels, mask=mask, detections=detections))
    card = Card.of(trained, form.form, form.output_names())
    console = Console(soft_wrap=True)
    began = perf_counter()
    write(form, card, out, kind)
    files = [out, *([out.with_suffix(".bin")] if kind == "openvino" else [])]
    size = sum(file.stat().st_size for file in files) / 1e6
    told = f"wrote {out} ({kind}, {size:.1f} MB, {perf_counter() - began:.0f} s): {', '.join(form.form.inputs)} to "
    console.print(told + ", ".join(card.outputs))
    if not images:
        return
    found = run_check(
        trained.detector,
        open_written(out, card),
        images,
        transform=trained.source.augment.evaluate,
        tolerance=allowed,
    )
    told = f"scores differ by {found.scores:.1e}, boxes by {found.boxes:.1e} of the image; "
    console.print(
        f"beside PyTorch on {counted(len(images), 'image')}, all detections as sets: {told}"
        f"{found.unpaired} have no counterpart within {allowed:g}"
    )
    if not found.within(allowed):
        console.print("the file does not compute what PyTorch does", style="red")
        raise typer.Exit(1)
