"""How often is a difference marked with one seed where there is none? Seeds of one recipe held against each other.

    python benchmarks/seed_marks.py runs/a-seed0 runs/a-seed1 runs/b-seed0 runs/b-seed1

Runs of the same recipe make pairs; each is compared as two recipes with one seed would be, over images alone. Their
detections are to be there (`detrkit compare RUNS --baseline A --evaluate` leaves them).
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

from detrkit.compare.comparison import chosen_runs, equal_epoch
from detrkit.compare.detections import score_runs, told_of
from detrkit.compare.paired import RunScores, pair
from detrkit.compare.targets import gather_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    rows = gather_rows(parser.parse_args().runs, (), runs=Path("no-folder"))
    images, lacking = score_runs([one for row in rows for one in chosen_runs(row, equal_epoch(rows))])
    print(*told_of(lacking), sep="\n")
    marked = []
    for row in rows:
        for one, other in combinations([run for run in row.trained if run.path in images], 2):
            found = pair(*([RunScores(0, {}, images[run.path])] for run in (one, other)))
            assert found is not None  # both sides have a run
            ap = found.differences["AP"]
            marked.append(ap.is_sure)
            print(f"{row.name}: seeds {one.seed} and {other.seed} differ by {ap.value:+.2f}{' *' * ap.is_sure}")
    print(f"{sum(marked)} of {len(marked)} pairs are marked")


if __name__ == "__main__":
    main()
