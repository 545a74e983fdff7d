"""Where and how large the checks run, and what several of them build."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu.record import Record
from torch import Tensor

import detrkit
from detrkit.compare.timing import milliseconds
from detrkit.compare.workload import measure_workload
from detrkit.recipe import Recipe
from tests.small import SMALL

SYSTEMS = {
    "SAP-DETR": "sap_detr_r50_50ep",
    "DAB-DETR": "dab_detr_r50_50ep",
    "SAP + DINO": "sap_dino_r50_12ep",
    "DINO, 4 levels": "dino_4scale_r50_12ep",
}
OTHERS = list(SYSTEMS)[1:]
OBJECTS = 8  # of each image


@dataclass
class Setting:
    """The device, whether sizes are tiny, the seconds that a check has, and where it writes what it finds."""

    device: torch.device
    tiny: bool
    seconds: float
    record: Record
    check: str
    started: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return (64, 96) if self.tiny else (800, 1333)

    @property
    def batch(self) -> int:
        return 2 if self.tiny else 16

    @property
    def rounds(self) -> int:
        return 2 if self.tiny else 10

    @property
    def precision(self) -> str:
        return "bf16" if self.on_gpu else "fp32"  # autocast is refused on a CPU

    def left(self) -> float:
        """Seconds until the check's limit."""
        return self.seconds - (time.monotonic() - self.started)

    def add(self, what: str, **values: Any) -> None:
        """Write a line of results."""
        self.record.add(self.check, what, **values)

    def attempt(self, what: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """A line of what `measure` gives, or of how it failed; none if a call before has one of that name."""
        known = {(line["what"], line.get("name")) for line in self.record.latest(self.check) if "failed" not in line}
        if (what, name) in known:
            return
        try:
            self.add(what, name=name, **measure())
        except Exception as error:
            traceback.print_exc()
            self.add(what, name=name, failed=f"{type(error).__name__}: {error}"[:600])
        gc.collect()  # a detector's memory, before the next one's
        if self.on_gpu:
            torch.cuda.empty_cache()

    def recipe(self, name: str, *overrides: str) -> Recipe:
        """A shipped recipe with fresh weights; small where sizes are tiny."""
        return detrkit.load_recipe(
            name, ["backbone.pretrained=false", "detector.classes=91", *(SMALL if self.tiny else []), *overrides]
        )

    def work(self, recipe: str) -> int:
        """Multiply-adds of a forward pass of detection over one image; counted once for all checks."""
        height, width = self.size
        name = f"{recipe}, {height} x {width}"
        known = [
            line["multiply_adds"] for line in self.record.lines() if (line["what"], line.get("name")) == ("work", name)
        ]
        if not known:
            detector = detrkit.build_detector(self.recipe(recipe))
            known = [measure_workload(detector, height=height, width=width).total.multiply_adds]
            self.add("work", name=name, multiply_adds=known[0])
        return known[0]

    def images(self, count: int) -> Tensor:
        """[count, 3, H, W]"""
        return torch.randn(count, 3, *self.size, generator=torch.Generator().manual_seed(0)).to(self.device)

    def targets(self, count: int, classes: int = 80) -> list[dict[str, Tensor]]:
        """Objects of random classes, places and sizes."""
        draw, found = torch.Generator().manual_seed(1), []
        for _ in range(count):
            size = 0.05 + 0.3 * torch.rand(OBJECTS, 2, generator=draw)
            center = size / 2 + (1 - size) * torch.rand(OBJECTS, 2, generator=draw)
            labels = torch.randint(classes, (OBJECTS,), generator=draw)
            found.append({"labels": labels.to(self.device), "boxes": torch.cat((center, size), -1).to(self.device)})
        return found

    def times(self, run: Callable[[], Any], warmup: int = 3, rounds: int | None = None) -> list[float]:
        """Milliseconds of each round, its device's work included."""
        for _ in range(min(warmup, 1) if self.tiny else warmup):
            run()
        return [milliseconds(run, self.device) for _ in range(rounds or self.rounds)]
