"""`detrkit init`: a recipe for a data set of one's own."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Trust

if TYPE_CHECKING:
    from detrkit.data.advice import Advice, Length
    from detrkit.data.auto_source import AutoSource
    from detrkit.engine.trial import Trial


def init(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="A new folder for the recipe.")],
    data: Annotated[Path, typer.Option(help="The folder of the data set, or a YOLO set's data.yaml.")],
    weights: Annotated[
        Path | None, typer.Option(help="A file of timm's weights for the backbone; unset: downloaded from timm's hub.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model; unset: the preset's.")] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="No pretrained weights: from random ones.")] = False,
    extends: Annotated[
        str, typer.Option(help="The preset, a recipe that this one extends: its name or file.")
    ] = "finetune",
    most: Annotated[int, typer.Option(min=64, help="The largest shorter side of images, in pixels.")] = 384,
    trust: Trust = False,
) -> None:
    """Look at a data set and write a short recipe for it, with image size, queries and epochs from its own numbers.

    A step is tried on the CPU: on its speed the epochs depend where there is no GPU, and on its memory how many images
    are taken at once.
    """
    from detrkit.data.advice import BATCH, advise, advise_length, advise_pieces
    from detrkit.data.auto_source import AutoSource
    from detrkit.data.transforms import NoAugment
    from detrkit.engine.trial import free_memory
    from detrkit.errors import DataError, UserError
    from detrkit.evaluation.precision import choose_device
    from detrkit.recipe import Factory
    from detrkit.wording import counted, typed
    from detrkit.writing import check_folder, write_text

    from .console import Console

    path = project / "recipe.toml"
    if path.exists():
        raise UserError(f"{path} is there already; name another folder, or edit that")
    if scratch and weights is not None:
        raise UserError("--scratch starts from random weights, and --weights names some; keep one of them")
    check_folder(project, "PROJECT")
    extends = _preset(extends)
    plain = Factory(slot="augment", name="none", options={}, parts={}, build=NoAugment)
    source = AutoSource(root=str(data), augment=plain)
    advice = advise(source.train, most=most)
    device, sizes = choose_device("auto"), (len(source.train), len(source.val))
    console = Console(soft_wrap=True)
    made = [folder for folder in (project, *project.parents) if not folder.exists()]

    def write(length: Length, at_once: int) -> None:
        model = (weights, backbone, scratch)
        write_text(path, recipe_text(source, advice, length, at_once, data=data, extends=extends, model=model))

    try:
        write(advise_length(*sizes, seconds=None), BATCH)
        trial = _try(path, trust=trust)
    except DataError as error:  # of an image; the training says the same if it meets it
        console.print(f"no step could be tried: {error}", style="yellow")
        seconds, (at_once, memory) = None, advise_pieces(0, None)
    except BaseException:  # an option that the preset does not take, or an interruption: nothing half done is left
        path.unlink(missing_ok=True)
        with suppress(OSError):  # what else has come into it stays
            for folder in made:
                folder.rmdir()
        raise
    else:
        seconds = trial.seconds if device.type == "cpu" else None
        at_once, memory = advise_pieces(trial.kept, free_memory(device))
    length = advise_length(*sizes, seconds=seconds)
    write(length, at_once)
    console.print(f"{source.describe()}: {counted(sizes[0], 'training image')}, {sizes[1]} for validation, "
                  f"{counted(len(source.categories), 'class')}")  # fmt: skip
    said = {f"batch of {min(BATCH, sizes[0])}": memory, counted(length.epochs, "epoch"): length.reason}
    for what, why in {**advice.reasons, **said}.items():
        console.print(f"{what}: {why}")
    console.print(f"written: {path}\nnext: detrkit check-data {typed(data)}   or   detrkit train {typed(path)}")


def _preset(extends: str) -> str:
    """As the new recipe has to name it: a file that was named from where the person stands, by its whole path."""
    from detrkit.recipe.library import is_known, recipe_name
    from detrkit.recipe.recipe import recipe_file

    path = recipe_file(extends)
    return recipe_name(path) if is_known(path) else str(path.resolve())


def _try(path: Path, *, trust: bool) -> Trial:
    """A step of the recipe on its own data."""
    from detrkit.data.advice import BATCH
    from detrkit.engine.data_checks import with_classes
    from detrkit.engine.trial import try_step
    from detrkit.recipe import load_recipe

    recipe = load_recipe(path, trust=trust)
    source = recipe.section("data")()
    return try_step(with_classes(recipe, source), source, batch_size=min(BATCH, len(source.train)))


def recipe_text(
    source: AutoSource,
    advice: Advice,
    length: Length,
    at_once: int,
    *,
    data: Path,
    extends: str,
    model: tuple[Path | None, str | None, bool],
) -> str:
    """The recipe as a person would write it, with the reasons beside the numbers. model: weights, backbone, scratch."""
    from detrkit.data.advice import BATCH
    from detrkit.recipe.problems import format_value as toml
    from detrkit.wording import counted, first_of, in_a_line

    weights, backbone, scratch = model
    folder = data.resolve().parent if data.is_file() else data.resolve()  # of a data.yaml
    images, short, epochs = len(source.train), advice.short, length.epochs
    batch = min(BATCH, images)
    scales = [round(short * factor / 16) * 16 for factor in (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)]
    names = first_of([in_a_line(category.name, 40) for category in source.categories], 8)
    options = [f"name = {toml(backbone)}"] if backbone else []
    if scratch:
        options += ["pretrained = false", 'norm = "batch"', "frozen_stride = 0"]
    elif weights is not None:
        options += [f"weights = {toml(str(weights.resolve()))}"]
    lines = [
        f"# Written by `detrkit init` for {in_a_line(source.describe())}.",
        f"# {counted(images, 'training image')}, {len(source.val)} for validation. Classes: {names}.",
        "",
        f"extends = {toml(extends)}",
        f"title = {toml(f'A detector for {folder.name}')}",
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
        *(["[backbone]", *options, ""] if options else []),
        "[train]",
        f"# {length.reason.split(';')[0]}",
        f"epochs = {epochs}           # {counted(epochs * (images // batch), 'step')}",
        f"batch_size = {batch}",
        *([f"micro_batch = {at_once}"] if at_once < batch else []),
        f"evaluate_every = {length.evaluate_every}",
    ]
    return "\n".join(lines) + "\n"
