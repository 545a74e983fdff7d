"""`detrkit replay`: a step of a training that was not finite, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.wording import first_of

from .options import Device, Trust

SHOWN = 5


def replay(
    step: Annotated[Path, typer.Argument(metavar="FILE", help="RUN/not_finite/step_N_process_R.safetensors.")],
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or fp16.", show_default="the training's")
    ] = None,
    trust: Trust = False,
) -> None:
    """Compute a step that ended a training once more: its losses, and where it stops to be finite.

    The file holds batch, weights, seeds and recipe. The exit code is 1 where the step is not finite again.
    """
    from detrkit.engine.replay import replay as run_again
    from detrkit.evaluation.precision import choose_device, choose_precision

    from .console import Console

    chosen = choose_device(device)
    found = run_again(
        step, device=chosen, precision=choose_precision(precision, chosen) if precision else None, trust=trust
    )
    lines = ["  ".join(f"{name} {value:.4g}" for name, value in found.losses.items())]
    if found.module:
        lines.append(f"not finite first in the output of {found.module}, whose input is finite")
    if found.operation:
        lines.append(f"the losses are finite; on the way back: {found.operation}")
    for kind, names in (("weights", found.weights), ("gradients", found.gradients)):
        if names:
            lines.append(f"{kind} that are not finite: {first_of(names, SHOWN)}")
    if found.is_finite:
        lines.append("all of it is finite this time")
    for line in lines:
        Console().print(line, soft_wrap=True)
    if not found.is_finite:
        raise typer.Exit(1)
