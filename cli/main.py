"""The command line: every verb stands in a file of its own."""

from __future__ import annotations

import importlib

import typer

app = typer.Typer(
    name="detrkit",
    help="Compose, train and compare DETR object detectors from TOML recipes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

# Verb, the module below detrkit.cli, the function: in the order of the help page.
VERBS = (
    ("train", "train", "train"),
    ("evaluate", "evaluate", "evaluate"),
    ("predict", "predict", "predict"),
    ("recipes", "recipes", "recipes"),
    ("inspect", "inspect", "inspect"),
    ("check-data", "check_data", "check_data"),
    ("convert", "convert", "convert"),
)

for _verb, _module, _function in VERBS:
    try:
        _loaded = importlib.import_module(f"detrkit.cli.{_module}")
    except ModuleNotFoundError as error:
        if error.name != f"detrkit.cli.{_module}":
            raise
        continue
    app.command(_verb)(getattr(_loaded, _function))
