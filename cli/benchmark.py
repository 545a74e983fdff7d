"""`detrkit benchmark`: how fast recipes' detectors are here, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Trust

PARTS = ("detection", "training", "loader")
STEP_BATCH, ROUNDS = 2, 10


def benchmark(
    targets: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Recipes (names or files), and KEY=VALUE.")],
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Size of the images.", show_default="640x640")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images of a detection.", show_default="1, 8")] = None,
    step_batch: Annotated[
        int | None, typer.Option(min=1, help="Images of a training step, and of the loader's batch.", show_default="2")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="detection, training or loader; several times for several.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=2, help="Rounds that are measured.", show_default="10")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where to write all that was measured.")] = None,
    trust: Trust = False,
) -> None:
    """Measure detection, the parts of a training step, memory and the loader; trains nothing and needs no weights.

    All recipes take turns in one process and each round gives a ratio to the first recipe, so that a machine that does
    other things changes the times, and the ratios little.
    """
    from detrkit.compare.benchmark import loaded_images, measure, of_recipe, runs_of
    from detrkit.compare.benchmark_sheets import benchmark_record, benchmark_sheets
    from detrkit.compare.targets import split_arguments
    from detrkit.compare.timing import WARMUP
    from detrkit.errors import UserError
    from detrkit.evaluation.precision import choose_device, choose_precision
    from detrkit.recipe import load_recipe
    from detrkit.writing import check_file, write_text

    from .compare import size_of
    from .console import open_console, progress_bar
    from .sheets import print_sheet

    height, width = size_of(size or "640x640")
    chosen = list(dict.fromkeys(only or PARTS))
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UserError(f"--only is {unknown[0]!r}; accepted are {', '.join(PARTS)}")
    for option, given, parts in (
        ("--batch", batch, {"detection"}),
        ("--step-batch", step_batch, {"training", "loader"}),
        ("--size", size, {"detection", "training"}),
        ("--rounds", rounds, {"detection", "training"}),
    ):
        if given and not parts & set(chosen):
            raise UserError(f"{option} is of {' and '.join(sorted(parts))}, which --only leaves out")
    at_once, rounds = step_batch or STEP_BATCH, rounds or ROUNDS
    if out is not None:
        check_file(out, "--out")
    names, overrides = split_arguments(targets)
    recipes = [load_recipe(name, overrides, trust=trust) for name in dict.fromkeys(names)]
    if not recipes:
        raise UserError("benchmark what? Name recipes; `detrkit recipes` lists them")
    console = open_console()
    here = choose_device(device)
    how: dict[str, Any] = {
        "device": here,
        "precision": choose_precision(precision, here),
        "height": height,
        "width": width,
    }
    subjects = [of_recipe(recipe, **how) for recipe in recipes]
    batches = list(dict.fromkeys(batch or (1, 8))) if "detection" in chosen else []
    training = "training" in chosen
    steps = runs_of(len(subjects), len(batches), training=training, rounds=rounds, warmup=WARMUP)
    with progress_bar(console, "measuring", steps) as advance:
        found = measure(
            subjects,
            **how,
            batches=batches,
            step_batch=at_once if training else 0,
            rounds=rounds,
            progress=advance,
        )
    if "loader" in chosen:
        for recipe, speed in zip(recipes, found.speeds, strict=True):
            speed.loaded = loaded_images(recipe, at_once)
        if all(speed.loaded is None for speed in found.speeds):
            console.print("the loader is not measured: the data are not here, or are one batch at most", style="yellow")
    for sheet in benchmark_sheets(found):
        print_sheet(console, sheet)
    if out is not None:
        write_text(out, json.dumps(benchmark_record(found), indent=1))
        console.print(f"\nwrote {out}", soft_wrap=True)
