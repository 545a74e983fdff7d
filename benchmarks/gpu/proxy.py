"""SAP-DETR's Table 4 on the built-in shapes, as far as the time reaches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gpu.setting import Setting

ROOT = Path(__file__).resolve().parents[2]


def table4(setting: Setting, add) -> None:
    """Rows through `detrkit compare --run`, several at a time on one card; the CPU edition, which is shorter.

    Runs are kept in the results' folder, so that a second call goes on with them.
    """
    recipes = sorted((ROOT / "recipes" / "proxy" / "cpu" / "table4").glob("*.toml"))
    runs = Path(setting.folder) / "table4"
    given = [f"train.device={setting.device.type}", "train.loggers=[]", "evaluate.pictures=0"]
    if setting.tiny:
        recipes = [recipes[0], recipes[1], recipes[6]]
        given += ["data.train_images=8", "data.val_images=4", "train.epochs=1", "train.batch_size=4"]
    parallel = 4 if setting.on_gpu else 1
    common = ["--seeds", "1", "--baseline", "7_dab_baseline", "--size", "112x112", "--runs", str(runs)]
    command = [sys.executable, "-m", "detrkit", "compare", *map(str, recipes), *given, *common]
    try:
        subprocess.run(
            [*command, "--run", "--parallel", str(parallel)], check=True, timeout=max(5, setting.left() - 25)
        )
    except subprocess.TimeoutExpired:
        add("table 4", name="time", result="not all rows were trained; a second call goes on")
    out = runs / "tables"
    subprocess.run([*command[:-2], "--runs", str(runs), "--out", str(out)], check=True, timeout=60)
    found = json.loads(
        (out / "comparison.json" if (out / "comparison.json").is_file() else out / "table.json").read_text()
    )
    add("table 4", name="comparison", spearman=found.get("spearman"), rows=found.get("spearman_rows"), tables=str(out))
