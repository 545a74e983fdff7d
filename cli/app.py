"""The command line: every verb stands in a file of its own, and imports torch only when it is used."""

from __future__ import annotations

from typing import Annotated

import typer

from .benchmark import benchmark
from .check_data import check_data
from .compare import compare
from .convert import convert
from .evaluate import evaluate
from .export import export
from .init import init
from .inspect import inspect
from .predict import predict
from .recipes import recipes
from .replay import replay
from .report import report
from .show import show
from .train import train

app = typer.Typer(
    name="detrkit",
    help="Compose, train and compare DETR object detectors from TOML recipes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from detrkit import __version__

        typer.echo(f"detrkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compose, train and compare DETR object detectors from TOML recipes."""


# In the order of the help page.
app.command("init")(init)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("report")(report)
app.command("predict")(predict)
app.command("compare")(compare)
app.command("benchmark")(benchmark)
app.command("show")(show)
app.command("recipes")(recipes)
app.command("inspect")(inspect)
app.command("check-data")(check_data)
app.command("convert")(convert)
app.command("export")(export)
app.command("replay")(replay)
