"""`detrkit report`: a trained detector's strengths and mistakes on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Console, print_notes
from .evaluate import evaluate_trained
from .trust import Trust

if TYPE_CHECKING:
    from detrkit.trained import Trained


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder; or a recipe, with --weights.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Laid over the recipe.")] = None,
    which: Annotated[
        str | None, typer.Option(help="Which checkpoint of the run: best or last.", show_default="best")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A .safetensors file (from `detrkit convert`, say) for a recipe.")
    ] = None,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    data: Annotated[Path | None, typer.Option(help="The folder of a data set in place of the run's.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html if not given.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Lowest score that counts; the one with the best F1 if not given."),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="How many of the worst and of the best images to draw.")] = 6,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; train.device if not given.")] = None,
    trust: Trust = False,
) -> None:
    """Write one HTML page about a trained detector: curves, classes, kinds of errors, confusion, images.

    It evaluates the detector first. The page needs no other file, and no network. What cannot be drawn is named and
    left out; the exit code is then 1.
    """
    from rich.progress import track

    from detrkit.drawing.faults import Faults
    from detrkit.engine.cores import workers_for
    from detrkit.errors import UserError
    from detrkit.evaluation.precision import choose_device
    from detrkit.report.findings import gather
    from detrkit.report.page import report_page
    from detrkit.runs.history import read_metrics
    from detrkit.trained import check_categories, open_trained
    from detrkit.writing import check_folder, write_text

    if split not in ("val", "train"):
        raise UserError(f"--split is {split!r}; accepted are val and train")
    if out is not None:
        check_folder(out.parent, "--out")
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
    console.print(f"{trained.origin} on {chosen}, {split} split", highlight=False, markup=False, soft_wrap=True)
    result = evaluate_trained(trained, split, chosen, workers_for(options, 1), console)
    dataset = trained.source.val if split == "val" else trained.source.train

    def bar(ids):
        return track(ids, "drawing", console=console, transient=True)

    faults, folder = Faults(), trained.folder
    found = gather(result, dataset, threshold=threshold, images=images, faults=faults, each=bar)
    metrics = (faults.draw("the training", lambda: read_metrics(folder)) or []) if folder else []
    title = trained.recipe.title or run
    facts, recipe = _facts(trained, split, metrics), trained.recipe.to_toml()
    write_text(out, report_page(title, facts, metrics, found, recipe, faults))
    average = result.stats["AP"]
    told = "no AP, for want of objects" if average is None else f"AP {100 * average:.1f}"
    console.print(f"{told}; wrote {out}", highlight=False, markup=False, soft_wrap=True)
    for fault in faults:
        console.print(fault, style="red", highlight=False, markup=False, soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def _facts(trained: Trained, split: str, metrics: list[dict]) -> list[str]:
    """Where the weights are from and what was evaluated, as lines."""
    parameters = sum(parameter.numel() for parameter in trained.detector.parameters())
    at = "" if trained.step is None else f", step {trained.step}"
    minutes = [line["minutes"] for line in metrics if line.get("kind") == "evaluate" and line.get("minutes")]
    took = f" Trained for {minutes[-1]:.0f} minutes." if minutes else ""
    told = f"{trained.origin}{at}, on the {split} split. {parameters / 1e6:.1f} million parameters.{took}"
    return [line for line in (told, trained.source.describe()) if line]
