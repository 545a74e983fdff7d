"""`detrkit recipes`: what ships, and the published row that each recipe is meant to reach."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

import typer

from detrkit.errors import UserError


def recipes(
    words: Annotated[
        list[str] | None, typer.Argument(help="Show only recipes that have all these words in name or title.")
    ] = None,
    table: Annotated[str | None, typer.Option(metavar="N", help="Show only rows of this published table.")] = None,
) -> None:
    """List the shipped recipes, folder by folder, with the table and AP of the published row that each reproduces."""
    from rich.table import Table as Listing
    from rich.text import Text

    from detrkit.recipe import list_recipes
    from detrkit.zoo.published import find_published

    from .console import open_console

    wanted = [word.lower() for word in words or []]
    entries = [e for e in list_recipes() if all(word in f"{e.name} {e.title}".lower() for word in wanted)]
    if not entries:
        raise UserError(f"no shipped recipe has {' and '.join(map(repr, wanted))} in its name or title")
    if table is not None:
        entries = [e for e in entries if (found := find_published(e.reproduces)) and found["table"] == table]
        if not entries:
            raise UserError(f"none of these recipes has a row of Table {table}")
    console = open_console()
    entries.sort(key=lambda entry: (entry.name.rpartition("/")[0], entry.name))
    for folder, group in groupby(entries, key=lambda entry: entry.name.rpartition("/")[0]):
        listed = list(group)
        listing = Listing(box=None, pad_edge=False, header_style="bold")
        names = max(len(entry.name) for entry in listed)
        # A name has to be typed, so titles alone give way in a narrow terminal.
        room = max(8, console.width - names - len("  table  43.1  ")) if console.is_terminal else None
        listing.add_column(folder or "recipe", no_wrap=True, style="cyan")
        listing.add_column("table", justify="right")
        listing.add_column("AP", justify="right")
        listing.add_column("title", no_wrap=True)
        for entry in listed:
            row = find_published(entry.reproduces)
            published = ("", "") if row is None else (row["table"], f"{row['AP']:.1f}")
            title = Text(entry.title)
            if room is not None:
                title.truncate(room, overflow="ellipsis")
            listing.add_row(entry.name, *published, title)
        console.print(listing)
        console.print()
