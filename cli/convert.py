"""`detrkit convert`: an official checkpoint in detrkit's names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The official checkpoint: .pth, .pt, .safetensors, ...")],
    recipe: Annotated[str, typer.Argument(help="The recipe of the same system.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Laid over the recipe.")] = None,
    entry: Annotated[
        str | None, typer.Option(help="The checkpoint's entry with the weights, such as ema; found if not given.")
    ] = None,
) -> None:
    """Turn an official checkpoint into weights that a recipe loads. Nothing that the checkpoint carries is run."""
    from rich.console import Console
    from rich.table import Table

    from detrkit.errors import UserError
    from detrkit.reading import read_checkpoint
    from detrkit.recipe import load_recipe
    from detrkit.runs.checkpoint import format_categories, save_weights
    from detrkit.writing import check_file, replaced_file
    from detrkit.zoo import convert as run_conversion
    from detrkit.zoo.classes import coco_categories, count_classes

    if output.suffix != ".safetensors":
        raise UserError(f"-o {output}: weights are written as .safetensors, so name a file with that ending")
    check_file(output, "-o")
    official = read_checkpoint(checkpoint, entry)
    loaded = load_recipe(recipe, overrides or ())
    if not any(text.startswith("detector.classes=") for text in overrides or ()):
        classes = count_classes(official, loaded)
        if classes is not None:
            loaded = loaded.with_values({"detector.classes": classes}, source=str(checkpoint))
    classes = loaded.get("detector.classes")
    state = run_conversion(official, loaded)

    metadata = {"source": checkpoint.name, "recipe": loaded.name, "classes": str(classes)}
    categories = coco_categories(loaded, classes)
    if categories:
        metadata["categories"] = format_categories(categories)
    with replaced_file(output) as temporary:
        save_weights(state, temporary, metadata)

    parts: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for name, tensor in state.items():
        parts[name.split(".")[0]] += 1
        values[name.split(".")[0]] += tensor.numel()
    table = Table("part")
    for title in ("tensors", "values"):
        table.add_column(title, justify="right")
    for part, count in parts.items():
        table.add_row(part, f"{count:,}", f"{values[part]:,}")
    table.add_section()
    table.add_row("all", f"{parts.total():,}", f"{values.total():,}")
    console = Console()
    console.print(table)
    left_out = len(official) - len(state)
    if left_out:
        console.print(f"{left_out} of the checkpoint's {len(official)} tensors were repeats or counters, left out")
    named = "COCO's categories" if categories else "categories without names"
    console.print(f"wrote {output}: {classes} classes, {named}", highlight=False, markup=False, soft_wrap=True)
