"""SAP-DETR's Table 4 on the built-in shapes, as far as the time reaches."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from gpu.setting import Setting

import detrkit
from detrkit.zoo.published import find_published

FOLDER = "proxy/cpu/table4"
ROWS = (
    *("1_full", "2_no_sdg", "3_no_peca", "4_no_peca_no_sdg", "5_not_movable", "6_no_inner", "7_dab_baseline"),
    "8_salient_points",
)
SEEDS, PARALLEL = 3, 8


def table4(setting: Setting) -> None:
    """Rows of the CPU edition, which is shorter, seed by seed and several at a time on one card.

    A line for each that has come to its end, so that a second call goes on with the others; then the rank correlation.
    """
    rows, seeds = (ROWS[::3], 1) if setting.tiny else (ROWS, SEEDS)
    done = {line["name"] for line in setting.record.latest(setting.check) if line["what"] == "row"}
    jobs = [(row, seed) for seed in range(seeds) for row in rows if f"{row}, seed {seed}" not in done]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        running: dict[tuple[str, int], tuple[subprocess.Popen, Path]] = {}
        while jobs or running:
            while jobs and len(running) < (PARALLEL if setting.on_gpu else 1):
                row, seed = jobs.pop(0)
                running[row, seed] = begin(setting, row, seed, Path(folder) / f"{row}_{seed}")
            for (row, seed), (process, run) in list(running.items()):
                if process.poll() is not None:
                    del running[row, seed]
                    if process.returncode:
                        failed.append(f"{row}, seed {seed}")
                    else:
                        setting.add("row", name=f"{row}, seed {seed}", row=row, seed=seed, **result(run))
                        rank(setting)
            time.sleep(0.1)
    if failed:
        raise RuntimeError(f"trainings that failed: {', '.join(failed)}")


def begin(setting: Setting, row: str, seed: int, run: Path) -> tuple[subprocess.Popen, Path]:
    given = [f"train.device={setting.device.type}", "train.loggers=[]", "evaluate.pictures=0", f"train.seed={seed}"]
    if setting.on_gpu:
        given.append("train.workers=1")  # images are drawn by the CPU, which has two cores for each training
    if setting.tiny:
        given += ["data.train_images=8", "data.val_images=4", "train.epochs=1", "train.batch_size=4"]
    command = [sys.executable, "-m", "detrkit", "train", f"{FOLDER}/{row}", *given, "--run-dir", str(run)]
    return subprocess.Popen(command), run


def result(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if line["kind"] == "evaluate"][-1]
    return {"ap": round(100 * (last["AP"] or 0.0), 3), "epoch": last["epoch"], "minutes": last["minutes"]}


def rank(setting: Setting) -> None:
    """Spearman's correlation of AP with the published AP, over the rows so far: of their means, and by seed."""
    lines = [line for line in setting.record.latest(setting.check) if line["what"] == "row"]
    published = {row: published_ap(row) for row in {line["row"] for line in lines}}
    by_seed: dict[int, dict[str, float]] = {}
    for line in lines:
        by_seed.setdefault(line["seed"], {})[line["row"]] = line["ap"]
    means = {row: mean(line["ap"] for line in lines if line["row"] == row) for row in published}
    setting.add(
        "rank",
        name="Spearman's correlation with the published order",
        rows=len(means),
        **correlated(means, published),
        by_seed=[f"seed {seed}: {correlated(found, published)}" for seed, found in sorted(by_seed.items())],
    )


def published_ap(row: str) -> float:
    reproduces = detrkit.load_recipe(f"{FOLDER}/{row}").get("reproduces")
    found = find_published(reproduces)
    assert found is not None
    return found["AP"]


def correlated(found: dict[str, float], published: dict[str, float]) -> dict[str, float]:
    """Spearman's rho, and its 95 % interval as if the rows were drawn from many.

    Fisher's z with variance (1 + rho^2 / 2) / (n - 3) (Bonett and Wright, "Sample size requirements for estimating
    Pearson, Kendall and Spearman correlations", Psychometrika 2000); none for fewer than four rows.
    """
    from scipy.stats import spearmanr

    if len(found) < 3:
        return {}
    rho = float(spearmanr([found[row] for row in found], [published[row] for row in found]).statistic)
    if len(found) < 4 or not abs(rho) < 1:
        return {"rho": round(rho, 3)}
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (len(found) - 3))
    low, high = (math.tanh(math.atanh(rho) + sign * half) for sign in (-1, 1))
    return {"rho": round(rho, 3), "low": round(low, 3), "high": round(high, 3)}
