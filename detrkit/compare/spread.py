"""Values over the seeds of a row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Spread:
    """Values of several seeds: their mean, and the standard deviation (over n - 1) if there are two or more."""

    values: tuple[float, ...]

    @classmethod
    def over_seeds(cls, values: Iterable[tuple[int, float]]) -> Spread:
        """Of runs' seeds and values: runs of one seed, as a copy of a run's folder is, count as one, their mean."""
        by_seed: dict[int, list[float]] = {}
        for seed, value in values:
            by_seed.setdefault(seed, []).append(value)
        return cls(tuple(mean(by_seed[seed]) for seed in sorted(by_seed)))

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None
