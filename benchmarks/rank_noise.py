"""What more seeds would tell of a compared table: seeds for each difference, and the rank correlation that can be had.

    python benchmarks/rank_noise.py benchmarks/results/proxy_cpu_table4_2026-11-24.json [MORE.json...]

The deviation between seeds is pooled over the rows of all files, as a row's own two or three seeds know it badly.
Differences are to the first file's first row, of runs paired by seed whose deviations are independent. The rank
correlation with what was published is drawn 4000 times, with the measured means taken for the truth.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
from scipy.stats import nct, spearmanr, t

DRAWS, POWER, LEAST_AP = 4000, 0.8, 5.0


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Seeds of each row with which 80 of 100 paired 95 % intervals exclude zero."""
    for seeds in range(2, 1000):
        away = abs(difference) / deviation / math.sqrt(2 / seeds)
        if nct.sf(t.ppf(0.975, seeds - 1), seeds - 1, away) >= POWER:
            return seeds
    return None


def main(paths: list[str]) -> None:
    tables = [json.loads(Path(path).read_text())["rows"] for path in paths]
    values = [row["equal"]["AP"]["values"] for rows in tables for row in rows]
    spread = [np.var(each, ddof=1) for each in values if len(each) > 1 and np.mean(each) > LEAST_AP]
    deviation = math.sqrt(float(np.mean(spread)))
    print(f"AP deviates by {deviation:.2f} between seeds, pooled over {len(spread)} rows above AP {LEAST_AP:g}")
    rows = tables[0]
    means = np.array([row["equal"]["AP"]["mean"] for row in rows])
    for row, mean in zip(rows[1:], means[1:], strict=True):
        seeds = seeds_needed(mean - means[0], deviation)
        print(f"{row['recipe']}: {mean - means[0]:+.1f} AP needs {seeds or 'over 1000'} seeds")
    known = [i for i, row in enumerate(rows) if "AP" in row["published"]]
    if len(known) < 3:
        return
    published = [rows[i]["published"]["AP"] for i in known]
    rng = np.random.default_rng(0)
    for seeds in (2, 3, 5, 10, 20):
        drawn = means[known] + deviation / math.sqrt(seeds) * rng.standard_normal((DRAWS, len(known)))
        found = np.array([spearmanr(one, published).statistic for one in drawn])
        low, middle, high = np.quantile(found, [0.025, 0.5, 0.975])
        reached = (found >= 0.9).mean()
        print(f"{seeds} seeds: rank correlation {middle:+.2f} [{low:+.2f}, {high:+.2f}], 0.9 or more in {reached:.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
