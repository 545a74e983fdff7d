"""`detrkit recipes`: what ships, and the published row that each recipe is meant to reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def recipes() -> None:
    """List the shipped recipes and the published row that each reproduces."""
    from rich.console import Console
    from rich.table import Table

    from detrkit.recipe import list_recipes

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True, style="cyan")
    table.add_column("title")
    table.add_column("reproduces")
    for entry in list_recipes():
        table.add_row(entry.name, entry.title, _published_row(entry.reproduces))
    Console().print(table)


def _published_row(reproduces: Mapping[str, Any]) -> str:
    """`{ table = "3", method = "SAP-DETR-R50", epochs = 50 }` as "table 3, SAP-DETR-R50, epochs 50"."""
    return ", ".join(str(v) if key == "method" else f"{key} {v}" for key, v in reproduces.items())
