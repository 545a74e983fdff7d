"""What training blocks cost: step time and peak memory of a recipe with each block, against the same one without.

    python benchmarks/block_cost.py                       # the quickstart's sizes, on the CPU
    python benchmarks/block_cost.py --full --device cuda  # ResNet-50 at 800 x 1066, bfloat16
    python benchmarks/block_cost.py --out benchmarks/results

All variants of a recipe take turns in one process, a step each, and a round's times are divided by the time without
blocks in that round: so a machine that others share changes the times, and the ratios little. Memory is what a step
allocates at its peak beyond weights and optimiser state; on the CPU it is read off PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

import detrkit
from detrkit.evaluation.evaluate import autocast

BLOCKS = {
    "no block": [],
    "denoising": ["blocks.added={type='denoising', groups=5}"],
    "contrastive": ["blocks.added={type='contrastive', count=100}"],
    "groups": ["blocks.added={type='groups', count=11}"],
}
SMALL, FULL = ("quickstart_dab", "quickstart"), ("dab_detr_r50_50ep", "sap_detr_r50_50ep")


class Variant:
    """One recipe with one block, and a training step of it."""

    def __init__(self, recipe: str, overrides: list[str], device: torch.device):
        torch.manual_seed(0)
        made = detrkit.load_recipe(recipe, ["backbone.pretrained=false", "detector.classes=91", *overrides])
        self.detector = detrkit.build_detector(made).to(device).train()
        self.criterion, self.device = detrkit.build_criterion(made), device
        self.optimiser = torch.optim.AdamW([p for p in self.detector.parameters() if p.requires_grad], lr=1e-4)

    def step(self, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]) -> float:
        """Seconds of a step."""
        self._wait()
        start = time.perf_counter()
        with autocast(self.device, "auto"):
            output = self.detector(images, None, targets)
        self.criterion(output, targets)["total"].backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._wait()
        return time.perf_counter() - start

    def peak(self, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]) -> float:
        """MiB that a step allocates at its peak beyond what is there before it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(images, targets)
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step(images, targets)
        with tempfile.TemporaryDirectory() as folder:
            record.export_chrome_trace(f"{folder}/trace.json")
            events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
        held = highest = 0
        for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
            held += event["args"]["Bytes"]
            highest = max(highest, held)
        return highest / 2**20

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(recipe: str, device: torch.device, rounds: int, batch: int, objects: int, size: tuple[int, int]) -> dict:
    """Seconds, peak memory and ratios of every block on a recipe."""
    torch.manual_seed(1)
    images = torch.randn(batch, 3, *size, device=device)
    targets = [
        {
            "labels": torch.randint(0, 91, (objects,)).to(device),
            "boxes": (torch.rand(objects, 4) * 0.4 + 0.3).to(device),
        }
        for _ in range(batch)
    ]
    variants = {name: Variant(recipe, overrides, device) for name, overrides in BLOCKS.items()}
    for variant in variants.values():  # the first step makes the optimiser's state
        variant.step(images, targets)
    memory = {name: variant.peak(images, targets) for name, variant in variants.items()}
    turns = [{name: variant.step(images, targets) for name, variant in variants.items()} for _ in range(rounds)]
    return {
        name: {
            "seconds": round(median(turn[name] for turn in turns), 4),
            "time_ratio": round(median(turn[name] / turn["no block"] for turn in turns), 3),
            "peak_mib": round(memory[name], 1),
            "peak_ratio": round(memory[name] / memory["no block"], 3),
        }
        for name in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ResNet-50 at 800 x 1066")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, help="images of a step (small: 8, full: 2)")
    parser.add_argument("--objects", type=int, default=7, help="objects of each image")
    parser.add_argument("--out", type=Path, help="folder for a JSON file with the result")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    size = (800, 1066) if arguments.full else (96, 96)
    batch = arguments.batch or (2 if arguments.full else 8)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result = {
        "date": datetime.date.today().isoformat(),
        "device": where,
        "torch": torch.__version__,
        "size": size,
        "batch": batch,
        "objects": arguments.objects,
        "recipes": {},
    }
    print(
        f"{where}, torch {torch.__version__}, {batch} images of {size[0]} x {size[1]}, {arguments.objects} objects each"
    )
    for recipe in FULL if arguments.full else SMALL:
        rows = measure(recipe, device, arguments.rounds, batch, arguments.objects, size)
        result["recipes"][recipe] = rows
        print(f"{recipe:<20} {'s / step':>9} {'ratio':>7} {'peak MiB':>9} {'ratio':>7}")
        for name, row in rows.items():
            numbers = (
                f"{row['seconds']:>9.3f} {row['time_ratio']:>7.2f} {row['peak_mib']:>9.0f} {row['peak_ratio']:>7.2f}"
            )
            print(f"  {name:<18} {numbers}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"block_cost_{device.type}_{result['date']}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
