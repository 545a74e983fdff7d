"""A row against the baseline: seed by seed where they share seeds, and on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detrkit.compare.detections import ImageScores
from detrkit.compare.intervals import Arm, Difference, estimate


@dataclass(frozen=True)
class RunScores:
    """One run's numbers in percent by their names, and the same by image where its detections are at hand."""

    seed: int
    stats: Mapping[str, float]
    images: ImageScores | None = None


@dataclass(frozen=True)
class Paired:
    """The differences of a row to the baseline, by the names of the numbers; those that all runs have.

    seeds: those that both rows have, whose runs are compared one by one; empty where they share fewer than two: then
        the rows' means are compared, as of independent runs.
    counts: of how many seeds the row's and the baseline's numbers are.
    """

    seeds: tuple[int, ...]
    counts: tuple[int, int]
    differences: Mapping[str, Difference]


def pair(row: Sequence[RunScores], base: Sequence[RunScores]) -> Paired | None:
    """Compare a row's runs with the baseline's; None if either has none. Runs of one seed count as one, their mean."""
    if not row or not base:
        return None
    shared = sorted({one.seed for one in row} & {one.seed for one in base})
    if len(shared) > 1:
        row, base = ([one for one in side if one.seed in shared] for side in (row, base))
    else:
        shared = []
    every = [*row, *base]
    by_image = [one.images for one in every if one.images is not None]
    images = by_image[0].images if len(by_image) == len(every) else 0
    numbers = [one.images.plain if images and one.images else one.stats for one in every]
    differences = {}
    for name in numbers[0]:
        if all(name in known for known in numbers):
            own, its = (_by_seed(side, name, with_images=images > 0) for side in (row, base))
            arms = [_minus(own, its)] if shared else [own, Arm(-its.values, _negative(its.resampled))]
            differences[name] = estimate(arms, images=images)
    counts = (len({one.seed for one in row}), len({one.seed for one in base}))
    return Paired(tuple(shared), counts, differences)


def _by_seed(runs: Sequence[RunScores], name: str, *, with_images: bool) -> Arm:
    """One value, and one column of resampled ones, for each seed in their order."""
    values, columns = [], []
    for seed in sorted({run.seed for run in runs}):
        same = [run for run in runs if run.seed == seed]
        if with_images:
            scores = [run.images for run in same if run.images is not None]
            values.append(np.mean([one.plain[name] for one in scores]))
            columns.append(np.mean([one.resampled[name] for one in scores], axis=0))
        else:
            values.append(np.mean([run.stats[name] for run in same]))
    return Arm(np.array(values, dtype=float), np.stack(columns, axis=1) if columns else None)


def _minus(own: Arm, its: Arm) -> Arm:
    if own.resampled is None or its.resampled is None:
        return Arm(own.values - its.values)
    return Arm(own.values - its.values, own.resampled - its.resampled)


def _negative(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else -values
