"""`detrkit convert`: a checkpoint of another code in detrkit's names, and the recipe that goes with it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Overrides, Trust

if TYPE_CHECKING:
    from rich.table import Table

WRITTEN = "# Written by `detrkit convert`"


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="The checkpoint: .pth, .pt, .bin, .safetensors, ...; or a folder that the package transformers saved.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="The recipe of the same system.", show_default="what the config.json beside says"
        ),
    ] = None,
    overrides: Overrides = None,
    entry: Annotated[
        str | None, typer.Option(help="The checkpoint's entry with the weights, such as ema; found if not given.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Turn a checkpoint of another code into weights that a recipe loads. Nothing that the checkpoint carries is run.

    Known are the official codes and the package transformers, told apart by their names. Where the recipe has to say
    something that it does not, a recipe is written beside the weights.
    """
    from detrkit.errors import UserError
    from detrkit.paths import with_home
    from detrkit.reading import files_of, read_checkpoint, read_json
    from detrkit.recipe import load_recipe
    from detrkit.recipe.overrides import is_override
    from detrkit.runs.checkpoint import format_categories, pixels_metadata, save_weights
    from detrkit.wording import first_of, in_a_line, typed
    from detrkit.writing import check_file, replaced_file, write_text
    from detrkit.zoo import fit, match
    from detrkit.zoo.classes import categories_of
    from detrkit.zoo.preprocessor import pixels_of
    from detrkit.zoo.recognising import is_of_another_model

    from .console import open_console, print_notes

    changes = list(overrides or ())
    if recipe is not None and is_override(recipe):
        changes.insert(0, recipe)
        recipe = None
    if output.suffix != ".safetensors":
        raise UserError(f"-o {output}: weights are written as .safetensors, so name a file with that ending")
    check_file(output, "-o")
    if output.resolve() in {file.resolve() for file in files_of(with_home(checkpoint))}:
        raise UserError(f"-o {output} is the checkpoint itself, which would be lost; choose another file")
    beside = checkpoint if checkpoint.is_dir() else checkpoint.parent
    with warnings.catch_warnings(record=True) as told_of:
        warnings.simplefilter("always")
        official = read_checkpoint(checkpoint, entry)
    config, preprocessor = (read_json(beside / f"{name}config.json") for name in ("", "preprocessor_"))
    if recipe is None and config is None:
        raise UserError(f"name the recipe of the same system: there is no config.json in {beside} that tells it")
    named = None if recipe is None else load_recipe(recipe, changes, trust=trust)
    remarks = [f"{note.message}; --entry takes them" for note in told_of]
    if named is not None and config is not None and is_of_another_model(config, official, named):
        remarks.append(f"{beside / 'config.json'} is of a {config['model_type']}, so it is not used")
        config = preprocessor = None
    fitted = fit(official, named, config=config, preprocessor=preprocessor, overrides=changes)
    loaded, classes = fitted.recipe, fitted.recipe.get("detector.classes")
    found = match(official, loaded)
    found.require_complete(loaded)

    said = output.with_suffix(".toml")
    changed = recipe is None or loaded.full_values() != load_recipe(recipe, trust=trust).full_values()
    earlier = said.exists() and said.read_text(encoding="utf-8").startswith(WRITTEN)
    if changed and said.exists() and not earlier:
        raise UserError(f"{said} is where the recipe of these weights goes, and is a file already; choose another -o")
    metadata = {"source": checkpoint.name, "recipe": loaded.name, "classes": str(classes)}
    categories = categories_of(config, loaded, classes)
    if categories:
        metadata["categories"] = format_categories(categories)
    if preprocessor is not None:
        metadata |= pixels_metadata(*pixels_of(loaded))
    with replaced_file(output) as temporary:
        save_weights(found.state, temporary, metadata)

    console = open_console()
    print_notes(console, remarks)

    def tell(text: str) -> None:
        console.print(text, soft_wrap=True)

    console.print(_table((name, tensor.numel()) for name, tensor in found.state.items()))
    if found.prefix:
        tell(f'"{found.prefix}" before every name was taken off')
    if found.losses:
        tell(f"of the training's losses, left out: {first_of(found.losses)}")
    if left_out := len(found.repeated) + len(found.counters):
        tell(f"{left_out} of the checkpoint's {len(official)} tensors were repeats or counters, left out")
    if summary := fitted.summary():
        tell(f"recipe {loaded.name}, in which is set:" if fitted.settings else f"recipe {loaded.name}:")
        tell("\n".join(f"  {line}" for line in summary.splitlines()))
    names = [category.name for category in categories if not category.is_placeholder]
    told = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "without names"
    tell(f"wrote {output}: {classes} classes, {told}")
    if changed or earlier:  # one of other weights must not stay beside these
        notes = "".join(f"# {line}\n" for line in fitted.summary().splitlines())
        about = in_a_line(f"for {output.name}, out of {checkpoint.name} and the recipe {loaded.name}.", 400)
        write_text(said, f"{WRITTEN}, {about}\n{notes}\n{loaded.to_toml()}")
        tell(f"wrote {said}: the recipe; detrkit predict {typed(said)} photos/ --weights {typed(output)} --out drawn/")


def _table(sizes: Iterable[tuple[str, int]]) -> Table:
    """How many tensors and values each part of the detector has, by names and sizes of its tensors."""
    from rich.table import Table

    tensors: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for name, size in sizes:
        tensors[name.split(".")[0]] += 1
        values[name.split(".")[0]] += size
    table = Table("part")
    for title in ("tensors", "values"):
        table.add_column(title, justify="right")
    for part, count in tensors.items():
        table.add_row(part, f"{count:,}", f"{values[part]:,}")
    table.add_section()
    table.add_row("all", f"{tensors.total():,}", f"{values.total():,}")
    return table
