"""Memory of a training on the CPU whose images vary in size, step by step, by how the C library gives memory back.

    python benchmarks/memory_growth.py
    python benchmarks/memory_growth.py --steps 1000 --only "the C library's own" "trimmed every tenth"
    python benchmarks/memory_growth.py --recipe sap_detr_r50_50ep --sides 480 800

Where nothing is set, the C library raises the size from which a block is mapped by itself, and given back when it is
freed, to 32 MiB. Blocks below that share one heap, and as each step wants other sizes, it grows. Each setting trains in
a process of its own, the settings in turn in every round; a step counts with giving back.
"kept" is what the command line does (`detrkit/c_memory.py`): in one run of 150 steps it ended at 1561 MiB where the C
library's own ended at 1568, and a step took 0.97 of the time. In another, sides in multiples of 64 ended at 987 MiB
where any sides ended at 1168, and a step took 1.05 times as long for its padding; giving memory back now and then
gained nothing that stayed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch

import detrkit

SETTINGS = {
    "the C library's own": {},
    "trimmed each step": {},
    "trimmed every tenth": {},
    "blocks from 256 KiB": {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)},
    "blocks from 1 MiB": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    "blocks from 4 MiB": {"MALLOC_MMAP_THRESHOLD_": str(4 << 20)},
    "kept": {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)},
    "sides of 64": {},  # as if batches were padded to multiples
    "no kept kernels": {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"},
    "one heap": {"MALLOC_ARENA_MAX": "1"},
}
GIVEN_BACK = {"trimmed each step": 1, "trimmed every tenth": 10}  # steps


def resident() -> float:
    """MiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(arguments: argparse.Namespace) -> None:
    """Train on noise, and print memory every so often and what a step takes, as JSON."""
    draw = random.Random(0)
    torch.manual_seed(0)
    recipe = detrkit.load_recipe(arguments.recipe, ["backbone.pretrained=false", "detector.classes=3"])
    detector, criterion = detrkit.build_detector(recipe).train(), detrkit.build_criterion(recipe)
    optimiser = torch.optim.AdamW(detector.parameters(), 1e-5)
    memory, seconds = [resident()], []
    for step in range(1, arguments.steps + 1):
        begin = time.perf_counter()
        height, width = (draw.randint(*arguments.sides) for _ in range(2))
        if arguments.train == "sides of 64":
            height, width = (-(-side // 64) * 64 for side in (height, width))
        images, mask = torch.randn(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.bool)
        mask[1, :, width // 2 :] = True
        counts = [draw.randint(1, 20) for _ in range(2)]
        targets = [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.rand(n, 4) / 2 + 0.1} for n in counts]
        criterion(detector(images, mask, targets), targets)["total"].backward()
        optimiser.step()
        optimiser.zero_grad()
        if step % arguments.every == 0:
            memory.append(resident())
        if step % GIVEN_BACK.get(arguments.train, arguments.steps + 1) == 0:
            ctypes.CDLL(None).malloc_trim(0)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"memory": memory, "seconds": mean(seconds)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="finetune")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="steps between two looks at the memory")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", type=int, nargs=2, default=[160, 320], help="range of height and width")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--train", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments)
        return
    first = None
    for _ in range(arguments.rounds):
        for name in arguments.only:
            environment = {
                key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "ONEDNN_", "GLIBC_"))
            }
            command = [sys.executable, *sys.argv, "--train", name]
            told = subprocess.run(command, env=environment | SETTINGS[name], stdout=subprocess.PIPE, check=True).stdout
            found = json.loads(told)
            first = first or found["seconds"]
            memory = " ".join(f"{value:.0f}" for value in found["memory"])
            print(f"  {name:20} {memory} MiB; a step {found['seconds'] / first:.2f} of the first", flush=True)


if __name__ == "__main__":
    main()
