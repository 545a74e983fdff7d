"""A new user's way with data of their own, in the formats that people have: commands, seconds and exit codes.

    python benchmarks/own_data.py $DETRKIT_DATA/bccd --weights $DETRKIT_DATA/weights/tf_efficientnet_lite0.safetensors
    python benchmarks/own_data.py $DETRKIT_DATA/bccd --scratch --epochs 1 --forms yolo whole

Writes the set, which has to be in COCO's format with both splits, as YOLO, Pascal VOC, Roboflow's COCO and one JSON
without a split, and runs for each `detrkit init`, `train`, `report` and `predict`, as a person would. Prints a table
and what failed; exits 1 if anything did. Without --epochs it trains as long as init says, half an hour a form on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the writers, which the tests have

from detrkit.data.coco_source import CocoSource  # noqa: E402
from detrkit.data.transforms import NoAugment  # noqa: E402
from detrkit.recipe import Factory  # noqa: E402
from tests.data.formats import WRITERS  # noqa: E402

FORMS = ("yolo", "voc", "roboflow", "whole")
PHOTOS = 4  # validation images to predict on


def commands(form: str, *, start: list[str], epochs: int | None) -> list[list[str]]:
    """What a person types, in the folder that holds the set and photos."""
    project, run = f"my_{form}", f"my_{form}/run"
    values = [] if epochs is None else [f"train.epochs={epochs}"]
    return [
        ["init", project, "--data", form, *start],
        ["train", project, *values, "--run", run],
        ["report", run],
        ["predict", run, "photos", "--out", f"{project}/drawn"],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a set in COCO's format")
    parser.add_argument("--weights", type=Path, help="of the backbone, for init")
    parser.add_argument("--scratch", action="store_true", help="for init")
    parser.add_argument("--most", type=int, help="largest shorter side, for init")
    parser.add_argument("--epochs", type=int, help="instead of those that init writes")
    parser.add_argument("--forms", nargs="+", choices=list(WRITERS), default=FORMS)
    parser.add_argument("--out", type=Path, help="keep the sets and runs there")
    given = parser.parse_args()
    start = ["--weights", str(given.weights.resolve())] if given.weights else ["--scratch"] if given.scratch else []
    start += ["--most", str(given.most)] if given.most else []
    plain = Factory(slot="augment", name="none", options={}, parts={}, build=NoAugment)
    source = CocoSource(root=str(given.data), augment=plain)
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary)
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        for index in range(min(PHOTOS, len(source.val))):
            shutil.copy(source.val.image_path(index), folder / "photos")
        print("| form | command | seconds | exit code |\n| --- | --- | --- | --- |")
        for form in given.forms:
            WRITERS[form]({"train": source.train, "val": source.val}, folder / form)
            for words in commands(form, start=start, epochs=given.epochs):
                begun = time.monotonic()
                result = subprocess.run(
                    [sys.executable, "-m", "detrkit", *words], cwd=folder, capture_output=True, text=True, check=False
                )
                shown = " ".join(Path(word).name if word.startswith("/") else word for word in words)
                seconds = time.monotonic() - begun
                print(f"| {form} | `detrkit {shown}` | {seconds:.1f} | {result.returncode} |", flush=True)
                if result.returncode:
                    failed = True
                    print(f"\n{result.stdout[-2000:]}{result.stderr[-2000:]}\n")
                    break  # the rest needs what this one makes
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
