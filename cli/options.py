"""The arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder; or a recipe, with --weights.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values laid over the recipe's.")]
Which = Annotated[
    Literal["best", "last"] | None, typer.Option(help="Which checkpoint of the run.", show_default="best")
]
Weights = Annotated[Path | None, typer.Option(help="A .safetensors file (from `detrkit convert`, say) for a recipe.")]
Split = Annotated[Literal["val", "train"], typer.Option(help="Which images of the data set.")]
Data = Annotated[
    Path | None, typer.Option(help="The folder of another data set in the run's format, in place of its own.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
TrainDevice = Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...", show_default="train.device")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run also the code that a run, or a base in another folder, brings along.")
]
