"""`detrkit show`: what a trained detector's decoder does on one image, in pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Run, Trust, Weights, Which

if TYPE_CHECKING:
    from PIL import Image

    from detrkit.data import DataSource


def show(
    run: Run,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file; or val:ID, train:ID of the data set.")],
    query: Annotated[
        list[int] | None,
        typer.Option(help="Query whose attention is shown, from 0; several allowed. The best detection's by default."),
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="Decoder layer of it, from 1; several allowed. The last by default.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the pictures, or a page alone, .html. RUN/shown/IMAGE by default."),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest score of the paths shown.")] = 0.3,
    which: Which = None,
    weights: Weights = None,
    trust: Trust = False,
) -> None:
    """Draw reference points, query scores and the attention of chosen queries, layer by layer.

    Writes PNG files and index.html, which holds them all with captions, or, as --out FILE.html, the page alone. A
    picture that cannot be drawn is named and left out; the exit code is then 1.
    """
    from detrkit.drawing.faults import Faults
    from detrkit.errors import UserError
    from detrkit.show.inside import draw_inside, missing
    from detrkit.show.look import look_at
    from detrkit.show.page import picture_page
    from detrkit.trained import open_trained
    from detrkit.writing import check_file, check_folder, write_bytes, write_text

    from .console import Console, print_notes, tracked

    alone = out is not None and out.suffix.lower() in (".html", ".htm") and not out.is_dir()
    if out is not None:
        (check_file if alone else check_folder)(out, "--out")
    trained = open_trained(run, (), which=which, weights=weights, trust=trust)
    picture, stem = _open_image(image, trained.source)
    if out is None:
        if trained.folder is None:
            raise UserError("a recipe has no folder for pictures; name one with --out")
        out = trained.folder / "shown" / stem
    look = look_at(trained.detector, picture, [category.name for category in trained.categories])
    queries = list(dict.fromkeys(query or [look.detections[0].query]))
    layers = list(dict.fromkeys(layer or [len(look.layers)]))
    look.check(queries, layers)
    kept = look.above(threshold)

    console = Console()
    print_notes(console, trained.notes)
    faults = Faults()
    drawing = draw_inside(look, kept=kept, queries=queries, layers=layers, faults=faults)
    pictures = list(tracked(console, drawing, "drawing"))
    facts = [f"{trained.recipe.title or trained.recipe.name}: {trained.origin}", *missing(look)]
    if kept[0].score < threshold:
        facts.append(f"No detection reaches {threshold:g}: the best one is shown.")
    facts += faults
    rows = [[str(d.query), d.name, f"{d.score:.3f}"] for d in kept]
    page = picture_page(f"Inside the detector: {stem}", facts, ["query", "class", "score"], rows, pictures)
    if alone:
        write_text(out, page)
    else:
        for made in pictures:
            write_bytes(out / made.file, made.png)
        write_text(out / "index.html", page)
    for fact in facts[1:]:
        console.print(fact, soft_wrap=True)
    told = f"{len(pictures)} pictures {'on one page,' if alone else 'and index.html'} written to {out}"
    console.print(told, soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def _open_image(image: str, source: DataSource) -> tuple[Image.Image, str]:
    """The image as the detector is to see it, and a name for its pictures."""
    from detrkit.data.decode import decode
    from detrkit.errors import UserError

    path = Path(image)
    split, colon, number = image.partition(":")
    if path.is_file() or not (colon and split in ("val", "train")):
        if not path.exists():
            raise UserError(f"{image}: no such image file; one of the data set is named by its split and id, as val:3")
        return source.augment.evaluate(decode(path)), path.stem
    dataset = source.val if split == "val" else source.train
    ids = dataset.image_ids.tolist()
    given = {str(dataset.records.given_id(image_id)): image_id for image_id in ids}
    if number not in given:
        raise UserError(
            f"{image}: the {split} split has {len(ids)} images, with ids from {next(iter(given))} to {[*given][-1]}"
        )
    stem = re.sub(r"[^\w.-]", "_", f"{split}_{number}")[:100]  # a data set's ids may be any texts
    return source.augment.evaluate(dataset.read(ids.index(given[number]))[0]), stem
