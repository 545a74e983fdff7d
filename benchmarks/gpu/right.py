"""Whether a GPU computes what the CPU and the official codes do."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from gpu.setting import Setting

from detrkit.evaluation.precision import HALF
from tests.parity import Run, cases, our_loss

ROOT = Path(__file__).resolve().parents[2]
WANTED = ("sap", "dab", "dn", "dino", "deformable", "conditional")
LIMITS = {
    # logits and boxes: largest difference; losses and gradient norms: relative, norms with the cases' own floor
    "fp32": {"logits": 2e-4, "boxes": 2e-5, "losses": 1e-4, "norms": 2e-3},
    "tf32": {"logits": 5e-2, "boxes": 5e-3, "losses": 1e-2, "norms": 5e-2},
    "bf16": {"logits": 5e-1, "boxes": 5e-2, "losses": 1e-1, "norms": 3e-1},
    "fp16": {"logits": 1e-1, "boxes": 1e-2, "losses": 2e-2, "norms": 1e-1},
}
"""fp32: the CPU's own. The others are expectations that no GPU has confirmed yet."""


def tests(setting: Setting) -> None:
    """The tests marked `gpu`, which skip without one."""
    outcomes = Outcomes()
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu")], [outcomes])
    for name, outcome in outcomes.found.items():
        setting.add("test", name=name, **({"failed": outcome} if outcome == "failed" else {"result": outcome}))
    if code:
        raise RuntimeError(f"pytest ended with {code!r}")


class Outcomes:
    """A plugin of pytest: how each test came out."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.nodeid.rpartition("::")[2]] = report.outcome


def parity(setting: Setting) -> None:
    """Every reference case in float32, with TF32 and in half precision, against the official numbers and our CPU's."""
    ordered = sorted((path for path in cases() if path.name.startswith(WANTED)), key=_place)
    for path in ordered[: 1 if setting.tiny else None]:
        both = lru_cache(lambda path=path: on_cpu(path))
        for precision in LIMITS:
            setting.attempt(
                "reference case",
                f"{path.name}, {precision}",
                lambda both=both, precision=precision: compared(setting, precision, *both()),
            )


def _place(path: Path) -> int:
    return next(place for place, name in enumerate(WANTED) if path.name.startswith(name))


def on_cpu(path: Path) -> tuple[Run, dict]:
    """A case, and what it gives on the CPU."""
    run = Run(path)
    return run, measured(run, torch.device("cpu"), "fp32")


def compared(setting: Setting, precision: str, run: Run, here: dict) -> dict:
    """The differences to the official numbers and to the CPU's, and which are over their limits."""
    found = measured(run, setting.device, precision)
    differences = {f"{kind}_of_official": value for kind, value in found["official"].items()}
    differences |= between(found, here)
    over = [name for name, value in differences.items() if not value <= LIMITS[precision][name.split("_")[0]]]
    return {"over": ", ".join(over) or "none", **{name: float(f"{value:.2e}") for name, value in differences.items()}}


def measured(run: Run, device: torch.device, precision: str) -> dict:
    """Outputs, losses and gradient norms of a case on a device; "official" holds distances to its stored numbers."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    run.detector.to(device).zero_grad(set_to_none=True)
    run.images, run.mask = run.images.to(device), run.mask.to(device)
    run.targets = [{name: value.to(device) for name, value in target.items()} for target in run.targets]
    half = torch.autocast(device.type, dtype=HALF[precision]) if precision in HALF else nullcontext()
    with half:
        output = run.predict()
        losses, norms = run.losses_and_gradients()
    found: dict = {"logits": output.logits.float().cpu(), "boxes": output.boxes.float().cpu(), "losses": losses}
    found["norms"] = {name: norm for name, norm in norms.items() if norm is not None}
    found["official"] = to_official(run, found)
    return found


def to_official(run: Run, found: dict) -> dict[str, float]:
    """The largest differences to what the official code gave."""
    meta, expected = run.case.meta, run.case.expected
    kinds, worst = {"pred_logits": "logits", "pred_boxes": "boxes"}, {"logits": 0.0, "boxes": 0.0}
    for name, values in expected.items():
        layer, _, kind = name.partition("/")
        if layer.startswith("layer") and kind in kinds:
            ours = run.case.cut(name, found[kinds[kind]][int(layer.removeprefix("layer"))])
            worst[kinds[kind]] = max(worst[kinds[kind]], largest(ours, values))
    named = {our_loss(name, len(meta["expected_indices"])): v for name, v in meta["expected_losses"].items()}
    named = {name: value for name, value in named.items() if name in found["losses"] and name != "class_error"}
    worst["losses"] = max(relative(found["losses"][name], value, 1e-3) for name, value in named.items())
    norms = {run.conversion.names[n]: v for n, v in meta["expected_grad_norms"].items() if n in run.conversion.names}
    norms = {name: value for name, value in norms.items() if value is not None}
    floor = max(norms.values()) / 2  # a norm may be off by 1e-3 of the largest where its own limit of 2e-3 is less
    worst["norms"] = max(relative(found["norms"][name], value, floor) for name, value in norms.items())
    return worst


def between(found: dict, other: dict) -> dict[str, float]:
    """The largest differences of two devices."""
    floor = max(other["norms"].values()) / 2
    losses = {name: value for name, value in other["losses"].items() if not name.endswith("class_error")}
    return {
        "logits_of_cpu": largest(found["logits"], other["logits"]),
        "boxes_of_cpu": largest(found["boxes"], other["boxes"]),
        "losses_of_cpu": max(relative(found["losses"][name], value, 1e-3) for name, value in losses.items()),
        "norms_of_cpu": max(relative(found["norms"][name], value, floor) for name, value in other["norms"].items()),
    }


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def relative(value: float, expected: float, floor: float) -> float:
    return abs(value - expected) / max(abs(expected), floor)
