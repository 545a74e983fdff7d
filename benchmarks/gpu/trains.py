"""Short trainings through `detrkit train`, stopped by their time limit and resumed once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu.setting import Setting


def quickstart(setting: Setting, add) -> None:
    """The recipe of the first run."""
    train(setting, add, "quickstart", [])


def sap_dino(setting: Setting, add) -> None:
    """SAP + DINO of the CPU proxy's size."""
    train(setting, add, "proxy/cpu/table3/7_sap_dino", [])


def train(setting: Setting, add, recipe: str, overrides: list[str]) -> None:
    """Half of the time, then `--resume` for the other half; the AP of the last evaluation."""
    minutes = max(0.02, (setting.seconds / 2 - 15) / 60)
    given = [f"train.device={setting.device.type}", f"train.precision={setting.precision}", *overrides]
    given += ["train.loggers=[]", f"train.max_minutes={minutes:.3f}", "evaluate.pictures=0"]
    if setting.tiny:
        given += ["data.train_images=16", "data.val_images=4", "train.epochs=2", "train.batch_size=4"]
        given += ["train.workers=0", "data.image_size=64"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        detrkit("train", recipe, *given, "--run-dir", str(run))
        detrkit("train", "--resume", str(run))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "AP" in line]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    add(
        "training",
        name=recipe,
        ap=100 * (evaluations[-1]["AP"] or 0.0) if evaluations else None,
        step=max((line.get("step", 0) for line in lines), default=0),
        images_per_second=speeds[-1] if speeds else None,
    )


def detrkit(*arguments: str) -> None:
    """Run the command; what it prints goes into the check's log."""
    subprocess.run([sys.executable, "-m", "detrkit", *arguments], check=True)
