"""How far a difference of means can be trusted: 95 % intervals over seeds, over images and over both.

A difference is the mean of what its arms contribute: one arm of the differences of each seed where two rows share their
seeds, else one arm for each row. The variance of an arm's mean over other seeds is that of a mean of n values. The
variance over other images is the bootstrap's, with the seeds as they are. Both together are their sum, less what is in
it twice: the variance over images that is of each seed alone. Degrees of freedom are Welch's and Satterthwaite's
(Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", 1946), so that few seeds make wide
intervals; the bootstrap over seeds that is often seen makes them far too narrow (docs/comparing.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
ENOUGH = 0.95  # of the resamples have to have the number: a size that only a few images hold tells too little


@dataclass(frozen=True)
class Interval:
    """Where a difference lies, with `LEVEL`."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Arm:
    """What one side contributes to a difference, with its sign.

    values: [n] one for each seed.
    resampled: [R, n] the same on R resamples of the images, all arms' on the same ones, nan on those without such an
        object; None where nothing is known.
    """

    values: np.ndarray
    resampled: np.ndarray | None = None


@dataclass(frozen=True)
class Difference:
    """A difference to the baseline.

    value: of the means over seeds.
    by_seed: what each pair of runs differs by; empty where the rows share no two seeds.
    over_seeds, over_images: the intervals where only these are taken to vary; None where nothing tells.
    over_both: where both are; None unless both are known.
    seeds_needed: how many seeds find a difference of this size with a chance of `POWER`; math.inf where none do,
        because of the images, or none up to `MOST_SEEDS`; None where there are fewer than two seeds, or none is needed
        because there is no difference to find.
    """

    value: float
    by_seed: tuple[float, ...] = ()
    over_seeds: Interval | None = None
    over_images: Interval | None = None
    over_both: Interval | None = None
    seeds_needed: float | None = None

    @property
    def interval(self) -> Interval | None:
        """The one over most: seeds and images, else what there is."""
        return self.over_both or self.over_seeds or self.over_images

    @property
    def over(self) -> str | None:
        """What that interval is over, in words."""
        named = (("seeds and images", self.over_both), ("seeds", self.over_seeds), ("images", self.over_images))
        return next((name for name, interval in named if interval is not None), None)

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and self.interval.excludes_zero


def estimate(arms: Sequence[Arm], *, images: int = 0) -> Difference:
    """The difference that arms add up to. images: how many the resamples are drawn from; 0 without any."""
    value = float(sum(arm.values.mean() for arm in arms))
    by_seed = tuple(arms[0].values.tolist()) if len(arms) == 1 else ()
    spreads = [_Spread.of(arm) for arm in arms] if all(len(arm.values) > 1 for arm in arms) else []
    over_seeds = _interval(value, [(spread.seeds / spread.count, spread.count - 1) for spread in spreads])
    drawn = [arm.resampled for arm in arms if arm.resampled is not None]
    moved = np.sum([one.mean(axis=1) for one in drawn], axis=0)
    if images < 2 or len(drawn) < len(arms) or np.isfinite(moved).mean() < ENOUGH:
        return Difference(value, by_seed, over_seeds, seeds_needed=_seeds_needed(value, spreads, []))
    together = float(np.nanvar(moved, ddof=1))
    over_images = _interval(value, [(together, images - 1)])
    if not spreads:
        return Difference(value, by_seed, over_images=over_images)
    shared = max(0.0, together - sum(spread.images / spread.count for spread in spreads))
    of_images = [(shared, images - 1)]
    return Difference(
        value=value,
        by_seed=by_seed,
        over_seeds=over_seeds,
        over_images=over_images,
        over_both=_interval(value, [*of_images, *(spread.of_mean(spread.count) for spread in spreads)]),
        seeds_needed=_seeds_needed(value, spreads, of_images),
    )


_Part = tuple[float, float]  # a variance and its degrees of freedom


@dataclass(frozen=True)
class _Spread:
    """An arm's variances. seeds: between its values; images: how much of that resampling gives each value alone."""

    count: int
    seeds: float
    images: float

    @classmethod
    def of(cls, arm: Arm) -> _Spread:
        alone = 0.0
        if arm.resampled is not None:
            alone = float(np.nanmean(np.var(arm.resampled - arm.values, axis=1, ddof=1)))
        return cls(len(arm.values), float(np.var(arm.values, ddof=1)), alone)

    def of_mean(self, count: int) -> _Part:
        """Of the mean of so many seeds. Two or three may lie close by luck, but not closer than their images let."""
        return max(self.seeds, self.images) / count, count - 1


def _interval(value: float, parts: Sequence[_Part]) -> Interval | None:
    from scipy.stats import t

    variance, freedom = _sum(parts)
    if not variance > 0:  # all values alike, which says nothing of how others would lie; or there are none
        return None
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(value - half, value + half)


def _sum(parts: Sequence[_Part]) -> _Part:
    variance = sum(part for part, _ in parts)
    of_parts = sum(part**2 / freedom for part, freedom in parts)
    return variance, variance**2 / of_parts if of_parts > 0 else 0.0


def _seeds_needed(value: float, spreads: Sequence[_Spread], of_images: Sequence[_Part]) -> float | None:
    """For each arm; the interval of so many is the one above, with the spreads that were seen."""
    if value == 0 or not spreads or not any(spread.of_mean(2)[0] > 0 for spread in spreads):
        return None

    def power(count: int) -> float:
        return _power(value, [*of_images, *(spread.of_mean(count) for spread in spreads)])

    if power(MOST_SEEDS) < POWER:
        return math.inf
    steps = [2, *(2**n for n in range(2, 10)), MOST_SEEDS]
    if power(2) >= POWER:
        return 2
    low, high = next((a, b) for a, b in pairwise(steps) if power(b) >= POWER)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _power(value: float, parts: Sequence[_Part]) -> float:
    """The chance that the interval of a difference of this size excludes zero, on its own side."""
    from scipy.stats import nct, t

    variance, freedom = _sum(parts)
    away = abs(value) / math.sqrt(variance)
    limit = float(t.ppf((1 + LEVEL) / 2, freedom))
    if away > 10 * limit:  # certain, where the noncentral distribution's tails lose their digits
        return 1.0
    return float(nct.sf(limit, freedom, away))
