"""`detrkit evaluate`: the COCO numbers of a trained detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.wording import counted, in_a_line, percent

from .options import Data, Overrides, Run, Split, TrainDevice, Trust, Weights, Which

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from rich.console import Console
    from rich.table import Table

    from detrkit.evaluation.coco_stats import ClassResult, EvalResult
    from detrkit.trained import Trained

PRECISION_OF = ("all IoU", "IoU 0.50", "IoU 0.75", "small", "medium", "large")
RECALL_OF = ("1 found", "10 found", "100 found", "small", "medium", "large")


def evaluate(
    run: Run,
    overrides: Overrides = None,
    which: Which = None,
    weights: Weights = None,
    split: Split = "val",
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; the run's folder if not given. A recipe writes only here.")
    ] = None,
    device: TrainDevice = None,
    trust: Trust = False,
) -> None:
    """Evaluate a trained detector as COCO does: 12 numbers, and a table per class.

    Writes evaluation.json and detections.json (COCO results) into the run's folder; with --data or another
    value of the recipe's data only into --out.
    Under torchrun the processes share the images.
    """
    from detrkit.engine.cores import workers_for
    from detrkit.engine.distributed import processes
    from detrkit.engine.launch import told_to_launcher
    from detrkit.errors import UserError
    from detrkit.evaluation.precision import choose_device, describe_precision
    from detrkit.trained import check_categories, open_trained
    from detrkit.writing import check_folder

    from .console import open_console, print_notes

    if out is not None:
        check_folder(out, "--out")
    trained = open_trained(run, overrides or (), which=which, weights=weights, data=data, trust=trust)
    if out is None and trained.folder is not None and trained.has_other_data:
        raise UserError("the run's folder keeps the evaluation on the run's own data; for other data name --out FOLDER")
    check_categories(trained)
    options = trained.recipe.section("train")
    device = device or options.device
    with told_to_launcher(), processes(device) as here:
        console = open_console(quiet=not here.is_first)
        chosen = choose_device(device, here.local_rank)
        print_notes(console, trained.notes)
        how = describe_precision(options.precision, chosen)
        console.print(f"{trained.origin} on {chosen}, {split} split, {how}", soft_wrap=True)
        result = evaluate_trained(trained, split, chosen, workers_for(options, here.world), console)
        if not here.is_first:
            return
    folder, written = out or trained.folder, list[Path]()
    try:
        if folder is not None:
            written = write_evaluation(folder, trained, result, chosen, run, split, overrides or ())
    finally:  # a full disk does not take the numbers along
        console.print(numbers_table(result), classes_table(result.per_class))
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def evaluate_trained(trained: Trained, split: str, device: torch.device, workers: int, console: Console) -> EvalResult:
    """Evaluate a trained detector on a split of its data, with a bar."""
    from detrkit.evaluation.evaluate import evaluate as run_evaluation

    from .console import open_progress

    with open_progress(console) as progress:
        task = progress.add_task("evaluating", total=None)
        return run_evaluation(
            trained.detector.to(device).for_inference(),
            trained.source,
            batch_size=trained.recipe.section("evaluate").batch_size,
            device=device,
            workers=workers,
            precision=trained.recipe.section("train").precision,
            split=split,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def numbers_table(result: EvalResult) -> Table:
    """The twelve numbers, in percent."""
    from rich.table import Table

    from detrkit.evaluation.coco_stats import STAT_NAMES

    title = f"average precision and recall, in percent, on {counted(result.images, 'image')}"
    table = Table(title=title, title_justify="left", title_style="", show_header=False)
    for title, columns, names in (
        ("AP", PRECISION_OF, STAT_NAMES[:6]),
        ("AR", RECALL_OF, STAT_NAMES[6:]),
    ):
        table.add_row("", *columns, style="dim")
        table.add_row(title, *(percent(result.stats[name]) for name in names), style="bold", end_section=True)
    return table


def classes_table(rows: list[ClassResult]) -> Table:
    """A row per class; a dash where a class has no truths and so is no part of the mean."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("class", overflow="fold")  # two long names may begin alike
    for title in ("AP", "AP50", "AP75", "AR100", "truths", "detections"):
        table.add_column(title, justify="right")
    for row in rows:
        numbers = (percent(value) for value in (row.AP, row.AP50, row.AP75, row.AR100))
        style = None if row.truths else "dim"
        table.add_row(Text(in_a_line(row.name)), *numbers, str(row.truths), str(row.detections), style=style)
    return table


def write_evaluation(
    folder: Path,
    trained: Trained,
    result: EvalResult,
    device: torch.device,
    target: str,
    split: str = "val",
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Write the numbers with what they are of, and the detections. target: how the detector was named."""
    from detrkit.evaluation.precision import choose_precision
    from detrkit.writing import write_text

    origin = {
        "target": target,
        "title": trained.recipe.title,
        "weights": str(trained.origin),
        "step": trained.step,
        "data": trained.recipe.full_values()["data"],
        "split": split,
        "overrides": list(overrides),
        "device": device.type,
        "precision": choose_precision(trained.recipe.section("train").precision, device),
    }
    records = (trained.source.val if split == "val" else trained.source.train).records
    ending = "" if split == "val" else f"_{split}"
    summary, detections = folder / f"evaluation{ending}.json", folder / f"detections{ending}.json"
    given = [{**found, "image_id": records.given_id(found["image_id"])} for found in result.detections]
    write_text(detections, json.dumps(given))
    write_text(summary, json.dumps(origin | result.summary(), indent=1, ensure_ascii=False))
    return [summary, detections]
