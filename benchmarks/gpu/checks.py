"""The checks, most valuable first, each with its limit in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Check:
    """name: "module.function" below this folder; title: for people; seconds: its limit."""

    name: str
    title: str
    seconds: float

    def load(self) -> Callable:
        module, function = self.name.split(".")
        return getattr(import_module(f"gpu.{module}"), function)


CHECKS = (
    Check("machine.machine", "The machine", 60),
    Check("right.tests", "Right: the tests marked gpu", 120),
    Check("right.parity", "Right: the reference cases", 120),
    Check("waits.waits", "Nothing waits", 60),
    Check("trains.quickstart", "Trains: the quickstart", 120),
    Check("trains.sap_dino", "Trains: SAP + DINO, small", 120),
    Check("fast.sap_step", "Fast: a training step of SAP-DETR", 150),
    Check("fast.sap_detection", "Fast: detection of SAP-DETR", 100),
    Check("fast.other_steps", "Fast: training steps of others", 120),
    Check("fast.other_detection", "Fast: detection of others", 150),
    Check("fast.peer", "Fast: DAB-DETR of transformers", 90),
    Check("profile.steps", "Where the rest goes", 120),
    Check("proxy.table4", "Table 4 on the proxy", 600),
    Check("hours.hours", "Projected hours of 12 COCO epochs", 10),
)
