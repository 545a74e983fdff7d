"""Epochs that runs needed to reach an AP, and how many times as fast a row is as the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from detrkit.compare.paired import RunScores, pair
from detrkit.runs.history import Run


@dataclass(frozen=True)
class Faster:
    """The baseline's epochs to an AP over a row's: the geometric mean, of pairs of a seed where the two share seeds.

    low, high: its 95 % interval over seeds, by t on logarithms; None where there are too few seeds.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Reached:
    """Epochs that a row needed to reach an AP, for each seed; None for one with a run that never did.

    faster: how many times as fast as the baseline; None where one of the two has a seed that never did.
    """

    epochs: tuple[float | None, ...]
    faster: Faster | None

    @property
    def mean(self) -> float | None:
        """None unless every seed reached it: a mean of those that did would flatter the row."""
        known = [value for value in self.epochs if value is not None]
        return mean(known) if known and len(known) == len(self.epochs) else None


def reach(runs: Sequence[Run], of_baseline: Sequence[Run], ap: float) -> Reached | None:
    """The epochs of a row's runs, and of its baseline's if it has one, to an AP in percent; None without runs."""
    if not runs:
        return None
    own, base = _needed(runs, ap), _needed(of_baseline, ap)
    return Reached(tuple(own.values()), _faster(own, base))


def epochs_needed(run: Run, ap: float) -> float | None:
    """Epochs until a run reached an AP (percent), on straight lines between its evaluations; None if it never did.

    Before its first evaluation a run that starts from nothing is taken to rise from AP 0; one that started from
    given weights counts from its first evaluation.
    """
    from_nothing = run.recipe.section("train").init_from is None
    before = (0.0, 0.0) if from_nothing else None
    for evaluation in run.evaluations:
        value = 100 * (evaluation.stats["AP"] or 0.0)
        if value >= ap:
            if before is None or value == before[1]:
                return float(evaluation.epoch)
            share = (ap - before[1]) / (value - before[1])
            return before[0] + share * (evaluation.epoch - before[0])
        before = (float(evaluation.epoch), value)
    return None


def _needed(runs: Sequence[Run], ap: float) -> dict[int, float | None]:
    """By seed; runs of one seed, as a copy of a run's folder is, count as one, their mean."""
    by_seed: dict[int, list[float | None]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(epochs_needed(run, ap))
    return {seed: Reached(tuple(by_seed[seed]), None).mean for seed in sorted(by_seed)}


def _faster(own: Mapping[int, float | None], base: Mapping[int, float | None]) -> Faster | None:
    sides = [
        [RunScores(seed, {"epochs": -math.log(needed)}) for seed, needed in side.items() if needed]
        for side in (own, base)
    ]
    if [len(side) for side in sides] != [len(own), len(base)]:
        return None
    paired = pair(*sides)
    if paired is None:
        return None
    found = paired.differences["epochs"]
    ends = (None, None) if found.over_seeds is None else (found.over_seeds.low, found.over_seeds.high)
    return Faster(math.exp(found.value), *(None if end is None else math.exp(end) for end in ends))
