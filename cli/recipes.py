"""`detrkit recipes`: what ships, and the published row that each recipe is meant to reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def recipes() -> None:
    """List the shipped recipes and the published row (table, method, epochs, AP) that each reproduces."""
    from rich.console import Console
    from rich.table import Table

    from detrkit.recipe import list_recipes
    from detrkit.zoo.published import find_published

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True, style="cyan")
    table.add_column("title")
    table.add_column("reproduces")
    table.add_column("AP", justify="right")
    for entry in list_recipes():
        row = find_published(entry.reproduces)
        ap = "" if row is None else f"{row['AP']:.1f}"
        table.add_row(entry.name, entry.title, _published_row(entry.reproduces), ap)
    Console().print(table)


def _published_row(reproduces: Mapping[str, Any]) -> str:
    """`{ table = "3", method = "SAP-DETR-R50", epochs = 50 }` as "table 3, SAP-DETR-R50, epochs 50"."""
    shown = {key: value for key, value in reproduces.items() if key != "group"}
    return ", ".join(str(v) if key == "method" else f"{key} {v}" for key, v in shown.items())
