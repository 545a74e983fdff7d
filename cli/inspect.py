"""`detrkit inspect`: a recipe with where each value came from, its parts, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Overrides, Trust

if TYPE_CHECKING:
    from rich.console import Console

    from detrkit.compare.workload import ModelWorkload
    from detrkit.recipe import Recipe


def inspect(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or the path of a TOML file.")
    ],
    overrides: Overrides = None,
    height: Annotated[int, typer.Option(min=32, help="Image height that the work is counted for.")] = 800,
    width: Annotated[int, typer.Option(min=32, help="Image width that the work is counted for.")] = 1066,
    trust: Trust = False,
) -> None:
    """Show the merged recipe with the source of each value, the parts, their parameters and GFLOPs."""

    from detrkit.recipe import load_recipe

    from .console import open_console

    console = open_console(soft_wrap=True)
    loaded = load_recipe(recipe, overrides or [], trust=trust)
    print_values(console, loaded)
    print_parts(console, loaded)
    print_workload(console, loaded, height=height, width=width)


def print_values(console: Console, recipe: Recipe) -> None:
    """The merged recipe as TOML, each line with a comment that says where its value came from."""
    from rich.text import Text

    from detrkit.recipe.problems import dotted, format_value

    table: tuple = ()
    for path, value, source in recipe.rows():
        if path[:-1] != table:
            table = path[:-1]
            console.print(Text(f"\n[{dotted(table)}]", style="bold"))
        said = f"{dotted(path[-1:])} = {format_value(value)}"
        style = "dim" if str(source) == "default" else ""
        console.print(Text(f"{said:<44}", style=style), Text(f"# {source}", style="dim cyan"))


def print_parts(console: Console, recipe: Recipe) -> None:
    """The tree of parts, by slot or name and type."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text.assemble((recipe.name, "bold"), f"  {recipe.title}"))
    for name, value in recipe.sections.items():
        _add_part(tree, name, value)
    console.print()
    console.print(tree)


def print_workload(console: Console, recipe: Recipe, *, height: int, width: int) -> None:
    """Parameters and multiply-adds of the detector and its parts, and what was not counted."""
    from rich.table import Table

    import detrkit
    from detrkit.compare.costs import for_counting
    from detrkit.compare.workload import measure_workload

    counted, assumed = for_counting(recipe)
    detrkit.build_criterion(counted)  # it has no part in the work, but what it refuses is refused here, too
    work = measure_workload(detrkit.build_detector(counted), height=height, width=width)

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("part", "parameters", "trainable", "GFLOPs"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in work.outline():
        depth = part.name.count(".")
        table.add_row("  " * depth + part.name, *_figures(part), style="dim" if depth else "")
    table.add_row("whole", *_figures(work.total), style="bold")
    console.print()
    console.print(table)
    console.print(f"\nGFLOPs: 1e9 multiply-adds for one image of {height} x {width}, forward only.")
    if assumed:
        console.print(
            f"Counted with {assumed} classes; the recipe leaves detector.classes to a data set that is not here."
        )
    console.print(_coverage(work))


def _figures(part: Any) -> tuple[str, str, str]:
    return f"{part.parameters:,}", f"{part.trainable:,}", f"{part.multiply_adds / 1e9:.2f}"


def _coverage(work: ModelWorkload) -> str:
    if not work.uncounted:
        return "Every operation was counted."
    listed = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in work.uncounted.items() if count >= 1e5)
    small = ", ".join(name for name, count in work.uncounted.items() if count < 1e5)
    return f"Not counted (million numbers that each puts out): {listed or 'none'}; below 0.1: {small or 'none'}."


def _add_part(tree: Any, name: str, value: Any) -> None:
    """Adds a part and what is nested in it; options that are no parts are left out, they stand above."""
    from rich.text import Text

    from detrkit.recipe import Factory

    if isinstance(value, Factory):
        branch = tree.add(Text.assemble(f"{name}: " if name else "", (value.name, "cyan")))
        for inner, part in value.parts.items():
            _add_part(branch, inner, part)
    elif isinstance(value, dict) and value:
        branch = tree.add(name)
        for inner, part in value.items():
            _add_part(branch, inner, part)
    elif isinstance(value, list) and value:
        branch = tree.add(name)
        for part in value:
            _add_part(branch, "", part)
