"""The option that verbs share which open runs and recipes."""

from __future__ import annotations

from typing import Annotated

import typer

Trust = Annotated[
    bool, typer.Option("--trust", help="Run also the code that a run, or a base in another folder, brings along.")
]
