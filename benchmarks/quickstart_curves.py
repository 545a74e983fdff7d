"""SAP-DETR's and DAB-DETR's parts in the same small recipe: AP50 against steps, several seeds each.

    python benchmarks/quickstart_curves.py --seeds 3 --out benchmarks/results
    python benchmarks/quickstart_curves.py --out benchmarks/results train.epochs=2     # overrides for both

Both recipes have equal data, backbone, sizes, steps and seeds; only the parts differ. Runs that are finished are not
repeated. With --parallel 2 two runs share the machine, each on one thread: two cores are used better that way.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import torch

RECIPES = {"SAP-DETR": "quickstart", "DAB-DETR": "quickstart_dab"}
COLOURS = {"SAP-DETR": "tab:red", "DAB-DETR": "tab:blue"}


def train(recipe: str, seed: int, runs: Path, overrides: list[str], threads: int | None) -> Path:
    """Train one seed of one recipe, or go on with it, in a process of its own; the run's folder."""
    folder = runs / f"{recipe}_seed{seed}"
    if curve(folder, finished=True):
        return folder
    command = [sys.executable, "-m", "detrkit", "train"]
    if (folder / "recipe.toml").exists():
        command += ["--resume", str(folder)]
    else:
        command += [recipe, f"train.seed={seed}", "evaluate.pictures=0", *overrides, "--run-dir", str(folder)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return folder


def curve(folder: Path, finished: bool = False) -> list[tuple[int, float, float]]:
    """(step, AP, AP50) of every evaluation of a run; with `finished`, nothing unless the run has ended."""
    path = folder / "metrics.jsonl"
    if not path.exists() or (finished and not (folder / "finished").exists()):
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(x["step"], x["AP"] or 0.0, x["AP50"] or 0.0) for x in lines if x["kind"] == "evaluate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_curves"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    threads = 1 if arguments.parallel > 1 else None

    def job(pair: tuple[str, int]) -> None:
        folder = train(pair[0], pair[1], arguments.runs, arguments.overrides, threads)
        (folder / "finished").touch()
        print(folder, curve(folder)[-1], flush=True)

    pairs = [(recipe, seed) for seed in range(arguments.seeds) for recipe in RECIPES.values()]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(job, pairs))

    curves = {
        method: [curve(arguments.runs / f"{recipe}_seed{seed}") for seed in range(arguments.seeds)]
        for method, recipe in RECIPES.items()
    }
    write(curves, arguments.out, arguments.overrides)


def write(curves: dict[str, list[list[tuple[int, float, float]]]], out: Path, overrides: list[str]) -> None:
    """The figure and the numbers."""
    out.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    summary = {}
    for method, runs in curves.items():
        steps = [step for step, _, _ in runs[0]]
        for column, axis in ((1, axes[0]), (2, axes[1])):
            values = [[100 * point[column] for point in run] for run in runs]
            for line in values:
                axis.plot(steps, line, color=COLOURS[method], alpha=0.25, linewidth=1)
            axis.plot(steps, [mean(v) for v in zip(*values, strict=True)], color=COLOURS[method], label=method)
        last = {name: [run[-1][column] for run in runs] for name, column in (("AP", 1), ("AP50", 2))}
        summary[method] = {
            name: {"mean": mean(v), "deviation": stdev(v) if len(v) > 1 else None, "runs": v}
            for name, v in last.items()
        }
    for axis, name in zip(axes, ("AP", "AP50"), strict=True):
        axis.set(xlabel="steps", ylabel=f"{name} on the validation split", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("The quickstart with SAP-DETR's and with DAB-DETR's parts (thin: one seed each)")
    date = datetime.date.today().isoformat()
    figure.savefig(out / f"quickstart_curves_{date}.png", dpi=110)
    result = {"date": date, "torch": torch.__version__, "overrides": overrides, "last": summary, "curves": curves}
    (out / f"quickstart_curves_{date}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
