"""A benchmark as tables of texts and as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from detrkit.compare.benchmark import PARTS, Benchmark, Speed
from detrkit.compare.comparison import short_names
from detrkit.compare.table import NOTHING, Sheet, number
from detrkit.compare.timing import Ratio, device_name

Rows = list[tuple[str, Speed]]


def benchmark_sheets(found: Benchmark) -> list[Sheet]:
    """A table for each batch of detection, for the training step, and for the loader, where they were measured."""
    names = short_names([speed.name for speed in found.speeds])
    first = found.speeds[0]
    how = (
        f"On {device_name(found.device)}, {found.precision}, {found.height} x {found.width}: medians of {found.rounds} "
        f"rounds in which all rows take turns. Ratio: the time of {names[0]} over the row's, its quartiles in brackets."
    )
    named = list(zip(names, found.speeds, strict=True))
    sheets = [_detection(found, named, batch, how) for batch in first.detection]
    if first.step:
        sheets.append(_training(found, named, how))
    if any(speed.loaded is not None for speed in found.speeds):
        note = (
            f"Training images a second that one worker prepares; {NOTHING} where the data are not here, or one batch."
        )
        rows = tuple((name, number(speed.loaded)) for name, speed in named)
        sheets.append(Sheet("Loader", ("recipe", "images/s"), rows, (note,)))
    return sheets


def _detection(found: Benchmark, named: Rows, batch: int, how: str) -> Sheet:
    rows = tuple(
        (
            name,
            f"{median(speed.detection[batch]):.1f}",
            _ratio(found.speeds[0].detection[batch], speed.detection[batch]),
            number(_or_none(speed.work, 1e-9 * batch)),
            number(found.limit(speed, batch)),
            number(_or_none(found.share(speed, batch), 100), 0),
            f"{speed.memory[f'detection of {batch}'] / 1e6:.0f}",
        )
        for name, speed in named
    )
    note = (
        f"{how} Limit: the matrix products alone at {found.rate / 1e9:.0f} GFLOP/s, a multiply-add counted once, as a "
        "product of large matrices ran here; share: how much of that is reached. Memory beyond weights."
    )
    columns = ("recipe", "ms", "ratio", "GFLOPs", "limit ms", "share %", "peak MB")
    return Sheet(f"Detection, batch {batch}", columns, rows, (note,))


def _training(found: Benchmark, named: Rows, how: str) -> Sheet:
    rows = tuple(
        (
            name,
            f"{median(speed.steps):.1f}",
            _ratio(found.speeds[0].steps, speed.steps),
            *(f"{median(speed.step[part]):.1f}" for part in PARTS),
            f"{speed.memory['training step'] / 1e6:.0f}",
        )
        for name, speed in named
    )
    note = f"{how} A GPU is waited for after each part. Memory beyond weights and the optimiser's state."
    columns = ("recipe", "ms", "ratio", *PARTS, "peak MB")
    return Sheet(f"Training step, batch {found.step_batch}", columns, rows, (note,))


def benchmark_record(found: Benchmark) -> dict[str, Any]:
    """All that was measured, every round of it, in milliseconds and bytes."""
    shared = {
        "device": device_name(found.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": found.precision,
        "height": found.height,
        "width": found.width,
        "step_batch": found.step_batch,
        "rounds": found.rounds,
        "multiply_adds_per_second": None if math.isnan(found.rate) else found.rate,
    }
    return shared | {"rows": [_row(found, speed) for speed in found.speeds]}


def _row(found: Benchmark, speed: Speed) -> dict[str, Any]:
    first = found.speeds[0]
    ratios = {f"detection of {n}": (first.detection[n], times) for n, times in speed.detection.items()}
    if speed.step:
        ratios["training step"] = (first.steps, speed.steps)
    return {
        **asdict(speed),
        "ratio_to_first": {what: asdict(Ratio.of(*pair)) for what, pair in ratios.items()},
        "share_of_limit": {batch: found.share(speed, batch) for batch in speed.detection},
    }


def _ratio(first: list[float], own: list[float]) -> str:
    ratio = Ratio.of(first, own)
    return f"{ratio.middle:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _or_none(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
