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


# Right first, then what nobody could say before in the fewest seconds; what has to compile comes after what has not.
# The first seven are expected to take four minutes together on an H200.
CHECKS = (
    Check("machine.machine", "The machine", 40),
    Check("right.tests", "Right: the tests marked gpu", 60),
    Check("waits.waits", "Nothing waits", 60),
    Check("right.parity", "Right: the reference cases", 120),
    Check("fast.sap_step", "Fast: a training step of SAP-DETR", 90),
    Check("fast.sap_detection", "Fast: detection of SAP-DETR", 40),
    Check("trains.quickstart", "Trains: the quickstart", 120),
    Check("fast.sap_compiled", "Fast: SAP-DETR compiled", 180),
    Check("fast.peer", "Fast: DAB-DETR of transformers", 60),
    Check("fast.other_steps", "Fast: training steps of others", 60),
    Check("fast.other_detection", "Fast: detection of others", 60),
    Check("trains.sap_dino", "Trains: SAP + DINO, small", 150),
    Check("profile.eager", "Where the rest goes: the eager step", 40),
    Check("profile.compiled", "Where the rest goes: the compiled step", 120),
    Check("proxy.table4", "Table 4 on the proxy", 600),
    Check("fast.others_compiled", "Fast: others compiled", 300),
)
