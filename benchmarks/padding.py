"""How much of the batches of a training is padding: images drawn one by one, and divided by size (`data.size_pool`).

    python benchmarks/padding.py annotations/instances_train2017.json
    python benchmarks/padding.py sizes.json --images 8000 --batch 16 --pools 8 32 128
    python benchmarks/padding.py annotations/instances_train2017.json --batch 2 --processes 8

FILE is a COCO annotation file, or a list {"columns": ["id", "height", "width"], "json_order": [...]}, as often in a row
as `--images` asks for. Sizes are drawn by DETR's augmentation, crops included. "longest" counts only the process with
the largest batch of a step, for which the others wait.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from detrkit.data.loader import plan_batches
from detrkit.data.transforms import DetrAugment


def read_sizes(path: Path) -> np.ndarray:
    """[I, 2] height and width of the images that a file names."""
    data = json.loads(path.read_text())
    if "columns" in data:
        rows = [dict(zip(data["columns"], row, strict=True)) for row in data["json_order"]]
    else:
        rows = data["images"]
    return np.array([(row["height"], row["width"]) for row in rows])


def padded(batches: list[list[list[int]]], sizes: np.ndarray) -> tuple[float, float]:
    """The share of padding in all batches of all processes, [processes][steps][B], and in each step's largest."""
    areas = np.array([[len(b) * sizes[b].max(0).prod() for b in mine] for mine in batches])
    real = sum(sizes[b].prod(1).sum() for mine in batches for b in mine)
    return 1 - real / areas.sum(), 1 - real / (areas.max(0).sum() * len(batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=int, help="of the epoch; the file's, if not given")
    parser.add_argument("--batch", type=int, default=16, help="images of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--pools", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    arguments = parser.parse_args()
    stored = read_sizes(arguments.file)
    count = arguments.images or len(stored)
    augment, rng = DetrAugment(), np.random.default_rng(0)
    begin = time.perf_counter()
    sizes = np.array([augment.size(*stored[index % len(stored)].tolist(), rng) for index in range(count)])
    each = (time.perf_counter() - begin) / count
    world = arguments.processes
    print(f"{count} images, {world} x {arguments.batch}; a size is drawn in {1e6 * each:.0f} microseconds")
    naive = 0.0
    for pool in (0, *arguments.pools):
        batches = [
            plan_batches(
                count, arguments.batch, train=True, epoch=0, seed=0, rank=rank, world=world, sizes=sizes, pool=pool
            )
            for rank in range(world)
        ]
        share, longest = padded(batches, sizes)
        naive = naive or share
        told = f"pool of {pool}" if pool else "one by one"
        print(f"  {told:12} {100 * share:5.1f} % padding, {share / naive:.2f} of that; longest {100 * longest:5.1f} %")


if __name__ == "__main__":
    main()
