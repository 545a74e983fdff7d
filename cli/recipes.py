"""`detrkit recipes`: what there is by name, and the published row that each recipe is meant to reach."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.errors import UserError

if TYPE_CHECKING:
    from detrkit.recipe import RecipeEntry


def recipes(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD", help="Show only recipes that have all these words in name or title."),
    ] = None,
    table: Annotated[str | None, typer.Option(metavar="N", help="Show only rows of this published table.")] = None,
) -> None:
    """List the recipes by folder, with the table and AP of the published row that each reproduces.

    detrkit's own come first, then those of installed packages.
    """
    from rich.table import Table as Listing
    from rich.text import Text

    from detrkit.recipe import broken_plugins, broken_recipes, list_recipes
    from detrkit.recipe.plugins import OWN

    from .console import open_console

    wanted = [word.lower() for word in words or []]
    entries = [e for e in list_recipes() if all(word in f"{e.name} {e.title}".lower() for word in wanted)]
    if not entries:
        raise UserError(f"no shipped recipe has {' and '.join(map(repr, wanted))} in its name or title")
    if table is not None:
        rows = [(entry, row) for entry in entries if (row := _published_row(entry))]
        entries = [entry for entry, row in rows if row["table"] == table]
        if not entries:
            there = ", ".join(sorted({row["table"] for _, row in rows})) or "none"
            raise UserError(f"none of these recipes has a row of Table {table}; there are rows of {there}")
    console = open_console()
    place = attrgetter("package", "folder")
    entries.sort(key=lambda entry: (entry.package != OWN, *place(entry), entry.name))
    for (package, folder), group in groupby(entries, key=place):
        listed = list(group)
        listing = Listing(box=None, pad_edge=False, header_style="bold")
        names = max(len(entry.name) for entry in listed)
        # A name has to be typed, so titles alone give way in a narrow terminal.
        room = max(8, console.width - names - len("  table  43.1  ")) if console.is_terminal else None
        heading = folder or "recipe"
        listing.add_column(heading if package == OWN else f"{heading} (package {package})", no_wrap=True, style="cyan")
        listing.add_column("table", justify="right")
        listing.add_column("AP", justify="right")
        listing.add_column("title", no_wrap=True)
        for entry in listed:
            row = _published_row(entry)
            published = ("", "") if row is None else (row["table"], f"{row['AP']:.1f}")
            title = Text(entry.title)
            if room is not None:
                title.truncate(room, overflow="ellipsis")
            listing.add_row(entry.name, *published, title)
        console.print(listing)
        console.print()
    for plugin in [*broken_plugins(), *broken_recipes()]:
        console.print(Text(str(plugin), style="red"))


def _published_row(entry: RecipeEntry) -> Mapping[str, Any] | None:
    """The row that a recipe reproduces; None where a package reproduces what our tables do not hold."""
    from detrkit.recipe.plugins import OWN
    from detrkit.zoo.published import PublishedError, find_published

    try:
        return find_published(entry.reproduces)
    except PublishedError:
        if entry.package == OWN:
            raise
        return None
