"""Training images a second of one worker with and without reduced JPEG decoding, by the size of the photographs.

    DETRKIT_DATA=data python benchmarks/reduced_jpeg.py          # photographs of data/coco_sample, enlarged
    python benchmarks/reduced_jpeg.py --photos photos/ --sides 1600 4000 --short 288
    python benchmarks/reduced_jpeg.py --dense                    # half of them mosaics, half of them mixed

Each is read, flipped, resized and perhaps cropped as DETR's training does it, and made a tensor, all in this process.
With and without take turns. Photographs that are enlarged have less to decode than real ones of that size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import torch
from loader_memory import make_data

from detrkit.compare.timing import Ratio, milliseconds, take_turns
from detrkit.data.coco_source import CocoSource
from detrkit.data.dense import DenseAugment
from detrkit.data.loader import SampleKey
from detrkit.data.transforms import Augment, DetrAugment

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("DETRKIT_DATA", "data"))
    parser.add_argument("--photos", type=Path, default=root / "coco_sample" / "train2017", help="a folder of .jpg")
    parser.add_argument("--sides", type=int, nargs="+", default=[1600, 2400, 4000], help="longer sides, pixels")
    parser.add_argument("--short", type=int, nargs="+", default=[800, 288], help="shorter sides trained at, pixels")
    parser.add_argument("--count", type=int, default=8, help="photographs")
    parser.add_argument("--dense", action="store_true", help="mosaic and mixup before")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for side in arguments.sides:
        with tempfile.TemporaryDirectory() as folder:
            make_data(Path(folder), arguments.photos, [(side, side * 3 // 4)] * arguments.count)
            for short in arguments.short:
                compare(folder, side, short, arguments)


def compare(folder: str, side: int, short: int, arguments: argparse.Namespace) -> None:
    share = short / 800  # of DETR's sizes
    augment: Augment = DetrAugment(
        scales=tuple(round(share * scale) for scale in range(480, 801, 32)),
        max_size=round(share * 1333),
        crop_scales=tuple(round(share * scale) for scale in (400, 500, 600)),
        crop_min=round(share * 384),
        crop_max=round(share * 600),
    )
    augment = DenseAugment(images=augment) if arguments.dense else augment
    sources = {how: CocoSource(root=folder, augment=augment, reduced_jpeg=how) for how in ("never", "train")}

    def run(how: str) -> float:
        return milliseconds(lambda: [sources[how].train[SampleKey(i)] for i in range(arguments.count)], CPU)

    times = take_turns({how: lambda how=how: run(how) for how in sources}, rounds=arguments.rounds, warmup=1)
    ratio = Ratio.of(times["never"], times["train"])
    whole, reduced = (1000 * arguments.count / median(times[how]) for how in ("never", "train"))
    print(
        f"  {side} x {side * 3 // 4}, trained at up to {short}: {whole:6.1f} images/s whole, {reduced:6.1f} reduced, "
        f"{ratio.middle:.2f} times (quartiles {ratio.low:.2f} to {ratio.high:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
