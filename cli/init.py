"""`detrkit init`: a recipe for a data set of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from detrkit.data.advice import Advice
    from detrkit.data.auto_source import AutoSource

STEPS = 2500  # of a training on a CPU: about half an hour on two cores
EPOCHS = (12, 100)  # at least and at most
BATCH = 8


def init(
    project: Annotated[Path, typer.Argument(help="A new folder for the recipe.")],
    data: Annotated[Path, typer.Option(help="The folder of the data set, or a YOLO set's data.yaml.")],
    weights: Annotated[
        Path | None, typer.Option(help="A file of timm's weights for the backbone; unset: downloaded from timm's hub.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model; unset: the preset's.")] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="No pretrained weights: from random ones.")] = False,
    extends: Annotated[str, typer.Option(help="The preset: a recipe that this one extends.")] = "finetune",
    most: Annotated[int, typer.Option(min=64, help="The largest shorter side of images, in pixels.")] = 384,
) -> None:
    """Look at a data set and write a short recipe for it, with image size, queries and epochs from its own numbers."""
    from rich.console import Console

    from detrkit.data.advice import advise
    from detrkit.data.auto_source import AutoSource
    from detrkit.data.transforms import NoAugment
    from detrkit.errors import UserError
    from detrkit.recipe import Factory, load_recipe
    from detrkit.writing import check_folder, write_text

    path = project / "recipe.toml"
    if path.exists():
        raise UserError(f"{path} is there already; name another folder, or edit that")
    if scratch and weights is not None:
        raise UserError("--scratch starts from random weights, and --weights names some; keep one of them")
    check_folder(project, "PROJECT")
    plain = Factory(slot="augment", name="none", options={}, parts={}, build=NoAugment)
    source = AutoSource(root=str(data), augment=plain)
    advice = advise(source.train, most=most)
    text = recipe_text(source, advice, data=data, extends=extends, weights=weights, backbone=backbone, scratch=scratch)
    write_text(path, text)
    try:
        load_recipe(path)
    except UserError:
        path.unlink()  # an option that the preset does not take: named, and nothing half done is left
        raise
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{source.describe()}: {len(source.train)} training images, {len(source.val)} for validation, "
                  f"{len(source.categories)} classes", markup=False)  # fmt: skip
    for what, why in advice.reasons.items():
        console.print(f"{what}: {why}", markup=False)
    console.print(f"written: {path}\nnext: detrkit check-data {data}   or   detrkit train {path}", markup=False)


def recipe_text(
    source: AutoSource,
    advice: Advice,
    *,
    data: Path,
    extends: str,
    weights: Path | None,
    backbone: str | None,
    scratch: bool,
) -> str:
    """The recipe as a person would write it, with the reasons beside the numbers."""
    from detrkit.recipe.problems import format_value as toml

    images, short = len(source.train), advice.short
    epochs = min(max(round(STEPS * BATCH / images), EPOCHS[0]), EPOCHS[1])
    batch = min(BATCH, images)
    scales = [round(short * factor / 16) * 16 for factor in (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)]
    names = ", ".join(category.name for category in source.categories[:8])
    more = f" and {len(source.categories) - 8} more" if len(source.categories) > 8 else ""
    model = [f"name = {toml(backbone)}"] if backbone else []
    if scratch:
        model += ["pretrained = false", 'norm = "batch"', "frozen_stride = 0"]
    elif weights is not None:
        model += [f"weights = {toml(str(weights.resolve()))}"]
    lines = [
        f"# Written by `detrkit init` for {source.describe()}.",
        f"# {images} training images, {len(source.val)} for validation. Classes: {names}{more}.",
        "",
        f"extends = {toml(extends)}",
        f"title = {toml(f'A detector for {data.resolve().stem}')}",
        "",
        "[data]",
        'type = "auto"',
        f"root = {toml(str(data.resolve()))}",
        "",
        "[data.augment]",
        f"# {advice.reasons['image size']}",
        'type = "detr"',
        f"scales = {toml(sorted(set(scales)))}",
        f"max_size = {advice.longest}",
        f"crop_scales = {toml(sorted({round(short * factor) for factor in (0.85, 1.0, 1.25)}))}",
        f"crop_min = {round(short * 0.7)}",
        f"crop_max = {short}",
        f"eval_size = {short}",
        f"eval_max_size = {advice.longest}",
        "",
        "[queries]",
        f"# {advice.reasons['queries']}",
        f"grid = {toml(list(advice.grid))}",
        "",
        *(["[backbone]", *model, ""] if model else []),
        "[train]",
        f"epochs = {epochs}           # {epochs * (images // batch)} steps",
        f"batch_size = {batch}",
        f"evaluate_every = {max(1, epochs // 20)}",
    ]
    return "\n".join(lines) + "\n"
