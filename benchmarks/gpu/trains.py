"""Short trainings through `detrkit train`, to their ends, stopped by their time limit and resumed once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu.setting import Setting

TINY = [
    *("data.train_images=16", "data.val_images=4", "data.image_size=64"),
    *("train.epochs=2", "train.batch_size=4", "train.log_every=1", "train.checkpoint_steps=1"),
]


def quickstart(setting: Setting) -> None:
    """The recipe of the first run."""
    setting.attempt(
        "training", "quickstart", lambda: train(setting, "quickstart", cpu="22.8 (docs/methods/quality.md)")
    )


def sap_dino(setting: Setting) -> None:
    """SAP + DINO of the CPU proxy's size; benchmarks/results/proxy_cpu_table3_2026-11-25.json has the CPU's AP."""
    name = "proxy/cpu/table3/7_sap_dino"
    setting.attempt("training", name, lambda: train(setting, name, "25.4 and 25.8 (seeds 0 and 1, fp32)"))


def train(setting: Setting, recipe: str, cpu: str) -> dict[str, Any]:
    """Half a minute, then `--resume` to the end or until the time is up; the AP of each epoch."""
    start, reserve = (0.2, 20) if setting.tiny else (30, 20)
    given = [f"train.device={setting.device.type}", f"train.precision={setting.precision}"]
    given.append(f"train.workers={0 if setting.tiny else 6}")
    given += ["train.loggers=[]", "evaluate.pictures=0", *(TINY if setting.tiny else [])]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        detrkit("train", recipe, *given, f"train.max_minutes={start / 60:.4f}", "--run-dir", str(run))
        before = lines_of(run)
        left = max(1.0, setting.left() - reserve)
        detrkit("train", "--resume", str(run), f"train.max_minutes={left / 60:.4f}")
        lines = lines_of(run)
    evaluations = [line for line in lines if line["kind"] == "evaluate"]
    speeds = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    return {
        "ap": [f"epoch {line['epoch']}: {100 * (line['AP'] or 0.0):.2f}" for line in evaluations],
        "ap_of_the_cpu": cpu,
        "steps": max((line["step"] for line in lines), default=0),
        "resumed_after_step": max((line["step"] for line in before), default=0),
        "minutes": evaluations[-1]["minutes"] if evaluations else None,
        "images_per_second": speeds[-1] if speeds else None,
    }


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def detrkit(*arguments: str) -> None:
    """Run the command; what it prints goes into the log."""
    subprocess.run([sys.executable, "-m", "detrkit", *arguments], check=True)
