"""The command line: every verb stands in a file of its own, and imports torch only when it is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import cleandoc
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
VERBS: dict[str, Callable] = {
    "init": init,
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "predict": predict,
    "compare": compare,
    "benchmark": benchmark,
    "show": show,
    "recipes": recipes,
    "inspect": inspect,
    "check-data": check_data,
    "convert": convert,
    "export": export,
    "replay": replay,
}
for _name, _verb in VERBS.items():
    # The lines of a docstring's paragraph as one, which is folded where the terminal ends.
    app.command(_name, help=re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(_verb.__doc__ or "")))(_verb)
