"""`detrkit report`: a trained detector's strengths and mistakes on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Console, print_notes, tracked
from .evaluate import evaluate_trained
from .options import Data, Overrides, Run, Split, TrainDevice, Trust, Weights, Which

if TYPE_CHECKING:
    from detrkit.trained import Trained


def report(
    run: Run,
    overrides: Overrides = None,
    which: Which = None,
    weights: Weights = None,
    split: Split = "val",
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="The page, .html, or a folder that is there for report.html; RUN if not given.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Lowest score that counts; the one with the best F1 if not given."),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="How many of the worst and of the best images to draw.")] = 6,
    device: TrainDevice = None,
    trust: Trust = False,
) -> None:
    """Write one HTML page about a trained detector: curves, classes, kinds of errors, confusion, images.

    It evaluates the detector first. The page needs no other file, and no network. What cannot be drawn is named and
    left out; the exit code is then 1.
    """
    from detrkit.drawing.faults import Faults
    from detrkit.engine.cores import workers_for
    from detrkit.errors import UserError
    from detrkit.evaluation.precision import choose_device, describe_precision
    from detrkit.report.findings import gather
    from detrkit.report.page import report_page
    from detrkit.runs.history import read_metrics
    from detrkit.trained import check_categories, open_trained
    from detrkit.writing import check_file, write_text

    if out is not None:
        out = _page(out)
        check_file(out, "--out")
    trained = open_trained(run, overrides or (), which=which, weights=weights, data=data, trust=trust)
    if out is None:
        if trained.folder is None or trained.has_other_data:
            raise UserError("the run's folder keeps the report on the run's own data; for others name --out FILE.html")
        out = trained.folder / ("report.html" if split == "val" else f"report_{split}.html")
    check_categories(trained)
    console = Console()
    print_notes(console, trained.notes)
    options = trained.recipe.section("train")
    chosen = choose_device(device or options.device)
    how = describe_precision(options.precision, chosen)
    console.print(f"{trained.origin} on {chosen}, {split} split, {how}", soft_wrap=True)
    result = evaluate_trained(trained, split, chosen, workers_for(options, 1), console)
    dataset = trained.source.val if split == "val" else trained.source.train

    def bar(ids):
        return tracked(console, ids, "drawing", len(ids))

    faults, folder = Faults(), trained.folder
    found = gather(result, dataset, threshold=threshold, images=images, faults=faults, each=bar)
    metrics = (faults.draw("the training", lambda: read_metrics(folder)) or []) if folder else []
    title = trained.recipe.title or run
    facts, recipe = _facts(trained, split, how, metrics), trained.recipe.to_toml()
    write_text(out, report_page(title, facts, metrics, found, recipe, faults))
    average = result.stats["AP"]
    told = "no AP, for want of objects" if average is None else f"AP {100 * average:.1f}"
    console.print(f"{told}; wrote {out}", soft_wrap=True)
    for fault in faults:
        console.print(fault, style="red", soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def _page(out: Path) -> Path:
    """The file that is meant: in a folder that is there, and with the ending that browsers go by."""
    if out.is_dir():
        return out / "report.html"
    return out if out.suffix.lower() in (".html", ".htm") else out.with_name(f"{out.name}.html")


def _facts(trained: Trained, split: str, how: str, metrics: list[dict]) -> list[str]:
    """Where the weights are from and what was evaluated, with which precision, as lines."""
    from detrkit.wording import short

    parameters = sum(parameter.numel() for parameter in trained.detector.parameters())
    at = "" if trained.step is None else f", step {trained.step}"
    minutes = [line["minutes"] for line in metrics if line.get("kind") == "evaluate" and line.get("minutes")]
    took = f" Trained for {short(minutes[-1])} minutes." if minutes else ""
    of = f"{trained.origin}{at}, on the {split} split, in {how.partition(':')[0]}"
    told = f"{of}. {parameters / 1e6:.1f} million parameters.{took}"
    return [line for line in (told, trained.source.describe()) if line]
