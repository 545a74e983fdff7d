"""A training step waits for its device once, for the matching (DESIGN.md, "Promises").

On the device "meta", whose tensors hold nothing: whatever asks one for a number fails there, and what the host copies
to it can be watched. A copy from the host waits until a GPU has done all that it was given, unless it is
`non_blocking`; `new_tensor` and `torch.tensor(..., device=...)` make such copies that wait.
"""

import traceback
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import detrkit
from detrkit.attention.multihead import visibility
from tests.small import SMALL

META = torch.device("meta")
EIGHT = "queries.count=8"
GRID = "queries.grid=[3, 4]"
RECIPES = {
    "sap_detr_r50_50ep": [GRID],
    "sap_detr_plus_r50_50ep": [GRID],
    "sap_dino_r50_12ep": [GRID],
    "sap_group_r50_12ep": [GRID],
    "detr_r50_500ep": [EIGHT],
    "dn_detr_r50_12ep": [EIGHT],
    "dino_4scale_r50_12ep": [EIGHT],
    "deformable_detr_4scale_refined_r50_50ep": [EIGHT],
    "anchor_detr_r50_50ep": ["queries.points=4", "queries.patterns=2"],
    "sam_detr_smca_r50_50ep": [EIGHT],
    "smca_detr_r50_50ep": [EIGHT],
}


class Copies(TorchDispatchMode):
    """Notes copies between the host and the device that wait, each with the line that asked for it."""

    def __init__(self):
        super().__init__()
        self.waiting = []

    def note(self, what):
        frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "/detrkit/" in f.filename]
        self.waiting.append((what, *frames[-1:]))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default:
            moved, waits = args[0].device != result.device, not (kwargs or {}).get("non_blocking", False)
        elif function is torch.ops.aten.copy_.default:
            moved, waits = args[0].device != args[1].device, len(args) < 3 or not args[2]
        else:
            return result
        if moved and waits:
            self.note(str(function))
        return result


@pytest.fixture
def copies(monkeypatch):
    """What the block `with copies:` copies; `new_tensor` and `torch.tensor` make their copies unseen by dispatch."""
    copies, real = Copies(), torch.tensor

    def tensor(*args, device=None, **options):
        if device is not None:
            copies.note("torch.tensor")
        return real(*args, device=device, **options)

    def new_tensor(like, values, **options):
        copies.note("new_tensor")
        return real(values, **{"dtype": like.dtype, "device": like.device, **options})

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch.Tensor, "new_tensor", new_tensor)
    visibility.cache_clear()
    yield copies
    visibility.cache_clear()


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_waits_for_the_matching_alone(name, copies, monkeypatch):
    recipe = detrkit.load_recipe(name, [*SMALL, *RECIPES[name], "detector.classes=5"])
    detector, criterion = detrkit.build_detector(recipe).to(META).train(), detrkit.build_criterion(recipe)
    images = torch.empty(3, 3, 64, 96, device=META)
    padded = torch.empty(3, 64, 96, dtype=torch.bool, device=META)
    targets = [
        {"labels": torch.empty(n, dtype=torch.int64, device=META), "boxes": torch.empty(n, 4, device=META)}
        for n in (2, 0, 3)
    ]
    costs = []

    def cpu(values):
        costs.append(values)
        return torch.zeros(values.shape, dtype=values.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # "meta" knows none
    for mask in (padded, None):
        with copies:
            criterion(detector(images, mask, targets), targets)["total"].backward()
    assert copies.waiting == []
    assert len(costs) == 2
