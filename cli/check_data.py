"""`detrkit check-data`: what a data set holds, and what is wrong with it, before hours go into training."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Overrides, Trust

if TYPE_CHECKING:
    from rich.console import Console

    from detrkit.data import Dataset
    from detrkit.data.check import SplitReport
    from detrkit.data.dataset import Split
    from detrkit.data.file_source import FileSource

SHOWN = 20  # faults of a kind that are printed; --json has all


PICTURES = 8  # drawn of each split
PICTURE = 640  # pixels of the longer side that a small image is enlarged to


def check_data(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A recipe, the folder of a data set, or an annotation file.")
    ],
    overrides: Overrides = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images of an annotation file.")] = None,
    files: Annotated[bool, typer.Option(help="Read every image file, too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Draw some images with their boxes into this folder.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="With --pictures: how many of each split.", show_default="8")
    ] = None,
    save_as: Annotated[
        Literal["coco", "yolo"] | None,
        typer.Option(
            help="Write a clean copy in this format: boxes and classes, without masks; clipped boxes, no faulty ones."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --save-as: a new folder for the copy.")] = None,
    trust: Trust = False,
) -> None:
    """Report classes, sizes and faults of a data set, in COCO's, YOLO's, Pascal VOC's or LabelMe's format.

    Exit code 1 if images or annotations are lost to faults.
    """
    from rich.text import Text

    from detrkit.data.check import check_split
    from detrkit.data.file_dataset import FileDataset
    from detrkit.data.same_images import same_images
    from detrkit.errors import UserError
    from detrkit.wording import in_a_line
    from detrkit.writing import check_file, check_folder

    from .console import Console, open_console, progress_bar

    if count is not None and pictures is None:
        raise UserError("--count goes with --pictures; without it nothing is drawn")
    if (save_as is None) != (out is None):
        raise UserError("--save-as and --out go together: the format of the clean copy, and a folder for it")
    if out is not None:
        check_folder(out, "--out")
        if out.is_dir() and any(out.iterdir()):  # what is left of an older copy would count among this one
            raise UserError(f"--out {out} is not empty; name a folder that is new or empty for the clean copy")
    if json_file is not None:
        check_file(json_file, "--json")
    if pictures is not None:
        check_folder(pictures, "--pictures")
    console, errors = open_console(soft_wrap=True), Console(stderr=True)
    told, lack, datasets = open_splits(target, overrides or [], images, trust=trust)
    if save_as is not None and not any(isinstance(dataset, FileDataset) for dataset in datasets.values()):
        raise UserError("--save-as copies images that are files, and this data set makes its images")
    reports: dict[str, SplitReport] = {}
    for name, dataset in datasets.items():
        with progress_bar(errors, f"reading {name}", len(dataset)) as advance:
            reports[name] = check_split(dataset, files=files, advance=advance)
    if files:
        twice = same_images({name: data for name, data in datasets.items() if isinstance(data, FileDataset)})
        for name, faults in twice.items():
            reports[name] = replace(reports[name], faults=[*reports[name].faults, *faults])
    if told:
        console.print(Text(in_a_line(told)))
    for name, report in reports.items():
        print_report(console, name, report)
    if lack:
        console.print(f"\n{lack}", style="yellow")
    if json_file is not None:
        write_json(json_file, target, reports)
        console.print(f"report written to {json_file}")
    if pictures is not None:
        drawn = sum(draw_some(dataset, pictures, name, count or PICTURES) for name, dataset in datasets.items())
        console.print(f"{drawn} pictures written to {pictures}")
    if save_as is not None and out is not None:
        save(datasets, reports, save_as, out, console, errors)
    if any(report.loses_data for report in reports.values()):
        raise typer.Exit(1)


def open_splits(
    target: str, overrides: list[str], images: Path | None, *, trust: bool = False
) -> tuple[str, str, dict[str, Dataset]]:
    """What was found, in a line, which split is not there, and the splits of a recipe, a folder or an annotation file.

    A folder may lack one of the two.

    A folder with a recipe.toml, such as a run's, stands for that.
    """
    from detrkit.data.auto_source import AutoSource
    from detrkit.data.coco_source import open_annotations
    from detrkit.data.file_source import FileSource
    from detrkit.data.transforms import NoAugment
    from detrkit.errors import UserError
    from detrkit.paths import with_home
    from detrkit.recipe import Factory, load_recipe

    path = with_home(target)
    is_file = path.suffix.lower() == ".json"
    is_set = path.suffix.lower() in (".yaml", ".yml") or (path.is_dir() and not (path / "recipe.toml").is_file())
    if overrides and (is_file or is_set):
        raise UserError(f"{overrides[0]}: {target} is no recipe, so there are no values to lay something over")
    if images is not None and not is_file:
        raise UserError("--images goes with an annotation file")
    if is_file:
        return f"COCO: {path.name}", "", {path.stem: open_annotations(path, images)}
    splits: tuple[Split, ...] = ("train", "val")
    if is_set:
        plain = Factory(slot="augment", name="none", options={}, parts={}, build=NoAugment)
        found = AutoSource(root=str(path), augment=plain)
        own = [name for name in splits if found.inner.find(name) is not None]
        # As they are: a set with one of them is not divided to be looked at.
        datasets: dict[str, Dataset] = {name: (found.inner if own else found).open(name) for name in own or splits}
        return found.describe(), what_lacks(datasets, found), datasets
    source = load_recipe(target, overrides, trust=trust).section("data")()
    names = [name for name in splits if not isinstance(source, FileSource) or source.has(name)]
    # Opening none says what is missing.
    datasets = {name: source.open(name) for name in names or splits[:1]}
    return source.describe(), what_lacks(datasets), datasets


def what_lacks(splits: Collection[str], divided: FileSource | None = None) -> str:
    """Which split a set does not have, and what follows. divided: the source that a training would divide it by."""
    if "train" not in splits:
        return "no train split: it serves for evaluation only"
    if "val" in splits:
        return ""
    if divided is None or not divided.val_share:
        return "no val split: there is nothing to evaluate on"
    return f"no val split: a training keeps {divided.val_share:.0%} of these images for it (data.val_share)"


def save(
    datasets: dict[str, Dataset],
    reports: dict[str, SplitReport],
    form: str,
    out: Path,
    console: Console,
    errors: Console,
) -> None:
    """Writes a clean copy, with a bar where somebody looks, and says what of the images and regions it has not."""
    from detrkit.data.file_dataset import FileDataset
    from detrkit.data.save import FORMATS
    from detrkit.wording import counted

    from .console import progress_bar

    files = {name: dataset for name, dataset in datasets.items() if isinstance(dataset, FileDataset)}
    without = {
        name: reports[name].unusable | {dataset.records.given_id(image_id) for image_id, _ in dataset.missing_files}
        for name, dataset in files.items()
    }
    with progress_bar(errors, "copying", sum(map(len, files.values()))) as advance:
        FORMATS[form](files, out, advance, without)
    console.print(f"a clean copy in the format of {form} written to {out}: boxes and classes, no masks or key points")
    if any(dataset.exif == "stored" for dataset in files.values()):  # where sizes fit both ways, nothing else tells
        meant = "pixels as they are stored" if form == "coco" else "images that are turned upright"
        way = "stored" if form == "coco" else "upright"
        console.print(f'its boxes are for {meant}, so it is read by data.exif = "{way}"', style="yellow")
    if unusable := sum(len(ids) + reports[name].unread for name, ids in without.items()):
        console.print(f"without {counted(unusable, 'image')} whose files cannot be used", style="yellow")
    if form == "yolo" and (crowds := sum(reports[name].crowds for name in files)):
        regions = counted(crowds, "crowd region")
        console.print(f"without {regions} (VOC: difficult objects), which YOLO does not know", style="yellow")


def print_report(console: Console, name: str, report: SplitReport) -> None:
    """The report of a split as tables."""
    from rich.table import Table
    from rich.text import Text

    from detrkit.wording import counted, in_a_line

    crowds = f" and {counted(report.crowds, 'crowd region')}" if report.crowds else ""
    told = f"\n{name}: {counted(report.images, 'image')}, {counted(report.boxes, 'box')}{crowds}"
    console.print(Text(told, style="bold"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("sizes", ", ".join(f"{count} {size}" for size, count in report.sizes.items()))
    per_image = report.boxes_per_image
    facts.add_row("boxes an image", f"{per_image['least']} to {per_image['most']}, mean {per_image['mean']:g}")
    common = [f"{size} ({count})" for size, count in list(report.image_sizes.items())[:4]]
    more = len(report.image_sizes) - len(common)
    facts.add_row("image sizes", ", ".join(common) + (f" and {more} more" if more else ""))
    empty = report.images_without_boxes
    if empty:
        some = ", ".join(map(str, empty[:SHOWN])) + (", ..." if len(empty) > SHOWN else "")
        facts.add_row("without boxes", f"{counted(len(empty), 'image')} (kept): {some}")
    console.print(facts)

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "class", "boxes", "images", "crowds"):
        table.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    for row in report.classes:
        style = "" if row.boxes else "yellow"
        table.add_row(
            str(row.id), Text(in_a_line(row.name)), str(row.boxes), str(row.images), str(row.crowds), style=style
        )
    console.print(table)

    by_kind = defaultdict(list)
    for fault in report.faults:
        by_kind[fault.kind].append(fault)
    if not by_kind:
        console.print("no faults", style="green")
    for kind, faults in by_kind.items():
        console.print(f"{kind}: {len(faults)}", style="red" if faults[0].loses else "yellow")
        for fault in faults[:SHOWN]:
            console.print(Text(f"  {fault}"))
        if len(faults) > SHOWN:
            console.print(f"  and {len(faults) - SHOWN} more (all of them with --json FILE)")


def write_json(path: Path, target: str, reports: dict[str, SplitReport]) -> None:
    """The whole report."""
    from detrkit.writing import write_text

    content = {"target": target, "splits": {name: report.as_json() for name, report in reports.items()}}
    write_text(path, json.dumps(content, indent=1))


def draw_some(dataset: Dataset, folder: Path, name: str, count: int) -> int:
    """Draw images from all over the split, with their boxes and names; how many were drawn."""
    import numpy as np
    from PIL import ImageDraw

    from detrkit.drawing.labels import class_colour, write_names
    from detrkit.drawing.saving import save_picture
    from detrkit.errors import DataError

    drawn = 0
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist():
        try:
            image, boxes, labels = dataset.read(index)
        except DataError:
            continue  # reported already
        scale = max(1, round(PICTURE / max(image.size)))
        image = image.resize((image.width * scale, image.height * scale))
        corners = [(x1, y1, x2, y2) for x1, y1, x2, y2 in (boxes * scale).tolist()]
        pen = ImageDraw.Draw(image)
        for box, label in zip(corners, labels, strict=True):
            pen.rectangle(box, outline=class_colour(int(label)), width=max(1, min(image.size) // 160))
        names = [dataset.labels.categories[label].name for label in labels]
        write_names(pen, image.size, names, [int(label) for label in labels], corners)
        save_picture(image, folder / f"{name}_{dataset.image_id(index)}.jpg")
        drawn += 1
    return drawn
