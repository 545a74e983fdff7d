"""Memory of the loader's workers over a training's images of many sizes, by how the C library gives memory back.

    DETRKIT_DATA=data python benchmarks/loader_memory.py         # photographs of data/coco_sample, in other sizes
    python benchmarks/loader_memory.py --photos photos/ --seconds 300 --only "the C library's own" "detrkit's own"

Nothing is trained: batches are made as DETR's are (sides of 480 to 800, crops), looked at and thrown away. Printed is
the proportional share (PSS) of all workers together, without what they share as batches, at even distances.
On one core, 5200 images: the C library's own 554 to 569 MiB, detrkit's 494 to 508, both flat after the first images and
equally fast. Blocks mapped one by one would take 315 MiB, and a worker makes 0.6 of the images.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from detrkit.data.coco_source import CocoSource
from detrkit.data.transforms import DetrAugment

SETTINGS = {
    "the C library's own": {"MALLOC_ARENA_MAX": "64"},
    "detrkit's own": {},
    "blocks from 128 KiB": {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)},
    "blocks from 1 MiB": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
}


def make_data(folder: Path, photos: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Photographs in these sizes (width, height), each with an object, in COCO's format."""
    found = sorted(photos.glob("*.jpg"))
    for split in ("train", "val"):
        (folder / split).mkdir()
    for number, size in enumerate(sizes):
        with Image.open(found[number % len(found)]) as photo:
            photo.convert("RGB").resize(size).save(folder / "train" / f"{number}.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg", "width": w, "height": h} for n, (w, h) in enumerate(sizes)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [9, 9, 200, 200], "area": 40000} for n in range(len(sizes))
    ]
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "it"}]}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def own_memory() -> float:
    """MiB of all processes below this one, their share of what is shared, without shared files."""
    children = (Path(f"/proc/self/task/{os.getpid()}/children")).read_text().split()
    found = 0
    for child in children:
        lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return found / 1024


def load(arguments: argparse.Namespace, folder: Path) -> None:
    """Make batches, and print memory and speed as JSON."""
    source = CocoSource(root=str(folder), augment=DetrAugment())
    memory, images, epoch, begin = [], 0, 0, time.monotonic()
    while (spent := time.monotonic() - begin) < arguments.seconds:
        for batch in source.loader(batch_size=2, epoch=epoch, workers=arguments.workers):
            images += len(batch)
            spent = time.monotonic() - begin
            if spent > arguments.seconds * (len(memory) + 1) / arguments.looks:
                memory.append(own_memory())
        epoch += 1
    print(json.dumps({"memory": memory, "speed": images / spent, "images": images}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("DETRKIT_DATA", "data"))
    parser.add_argument("--photos", type=Path, default=root / "coco_sample" / "train2017", help="a folder of .jpg")
    parser.add_argument("--count", type=int, default=100, help="images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=50, help="of each setting")
    parser.add_argument("--looks", type=int, default=8, help="how often memory is printed")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments, arguments.load)
        return
    draw = random.Random(0)
    sizes = [(draw.randint(320, 1024), draw.randint(320, 1024)) for _ in range(arguments.count)]
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), arguments.photos, sizes)
        for name in arguments.only:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
            command = [sys.executable, *sys.argv, "--load", folder]
            told = subprocess.run(command, env=environment | SETTINGS[name], stdout=subprocess.PIPE, check=True).stdout
            found = json.loads(told)
            memory = " ".join(f"{value:.0f}" for value in found["memory"])
            speed = f"{found['speed']:.1f} images/s, {found['images']} images"
            print(f"  {name:20} {memory} MiB in {arguments.workers} workers; {speed}", flush=True)


if __name__ == "__main__":
    main()
