"""A training step waits for its device once, for the matching (DESIGN.md, "Promises").

On the device "meta", whose tensors hold nothing: whatever asks one for a number fails there, and what the host copies
to it can be watched. A copy from the host waits until a GPU has done all that it was given, unless it is
`non_blocking`; `new_tensor` and `torch.tensor(..., device=...)` make such copies that wait. An index that is a mask
waits for the number of its places, and adding up into places (`index_put` with `accumulate`) for the largest of them.

A CUDA graph holds no copy from pageable memory at all, whether it waits or not.
"""

import traceback
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import detrkit
from detrkit.data import Batch
from detrkit.engine.interrupt import StopRequest
from detrkit.engine.loss_scale import LossScale
from detrkit.layers import Arriving
from tests.engine.toys import toy_trainer
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
    "ms_deformable_detr_4scale_r50_12ep": [EIGHT],
    "relation_detr_r50_12ep": [EIGHT, "blocks.hybrid.count=12"],
}


ATEN = torch.ops.aten
PLACING = (ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)


class Copies(TorchDispatchMode):
    """Notes what waits for the device, each with the line that asked for it."""

    def __init__(self):
        super().__init__()
        self.waiting = []
        self.all = False
        """whether copies that do not wait are noted too"""

    def note(self, what):
        frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "/detrkit/" in f.filename]
        self.waiting.append((what, *frames[-1:]))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        indices = args[1] if function in (ATEN.index.Tensor, *PLACING) and args[0].device == META else []
        if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.note(f"{function} by a mask")
        # In a backward pass that is watched, autograd takes this way where it otherwise would not look.
        if function in PLACING and args[0].device == META and torch._C._current_graph_task_id() == -1:
            accumulates, trusts = (*args[3:], False, False)[:2]
            if kwargs.get("accumulate", accumulates) and not kwargs.get("unsafe", trusts):
                self.note(f"{function} adding up")
        result = function(*args, **kwargs)
        if function is ATEN._to_copy.default:
            moved, waits = args[0].device != result.device, not kwargs.get("non_blocking", False)
        elif function is ATEN.copy_.default:
            moved, waits = args[0].device != args[1].device, len(args) < 3 or not args[2]
        else:
            return result
        if moved and (waits or self.all):
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
    return copies


def on_meta(name):
    """A recipe's detector and criterion, and a batch of three images with 2, 0 and 3 objects."""
    recipe = detrkit.load_recipe(name, [*SMALL, *RECIPES[name], "detector.classes=5"])
    detector, criterion = detrkit.build_detector(recipe).to(META).train(), detrkit.build_criterion(recipe)
    targets = [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.full((n, 4), 0.5)} for n in (2, 0, 3)]
    mask = torch.zeros(3, 64, 96, dtype=torch.bool)
    return detector, criterion, Batch(torch.zeros(3, 3, 64, 96), mask, targets, [1, 2, 3], torch.tensor([[64, 96]] * 3))


def test_what_waits_is_noticed(copies):
    """The watch itself: these pass on "meta" without an error."""
    values, places = torch.empty(4, 5, device=META), torch.empty(3, dtype=torch.int64, device=META)
    with copies:
        values[values > 0] = torch.empty(7, device=META)
        values.index_put_((places,), torch.empty(3, 5, device=META), accumulate=True)
        torch.zeros(3).to(META)
        torch.zeros(3).to(META, non_blocking=True)
        values[places] = 1.0
    what = [one[0] for one in copies.waiting]
    assert what == ["aten.index_put_.default by a mask", "aten.index_put_.default adding up", "aten._to_copy.default"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_waits_for_the_matching_alone(name, copies, monkeypatch):
    detector, criterion, batch = on_meta(name)
    batch = batch.to(META)
    costs = []

    def cpu(values):
        costs.append(values)
        return torch.zeros(values.shape, dtype=values.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr("detrkit.blocks.mixed.Arriving", Sent)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # "meta" knows none
    for mask in (batch.mask, None):
        with copies:
            criterion(detector(batch.images, mask, batch.targets), batch.targets)["total"].backward()
    assert copies.waiting == []
    assert len(costs) == 2


def test_the_trainers_own_step_waits_no_more(copies, monkeypatch, tmp_path):
    """With what stands around losses: the batch's way to the device, gradients' norm, update, average, readback."""
    detector, criterion, batch = on_meta("sap_dino_r50_12ep")
    monkeypatch.setattr(torch.optim, "AdamW", Update)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda values: torch.zeros(values.shape, dtype=values.dtype))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    # These look at a start, and after a fault.
    monkeypatch.setattr("detrkit.engine.checkpoints.Soundness", lambda *_: None)
    monkeypatch.setattr("detrkit.engine.ema.not_finite", lambda _: [])
    trainer = toy_trainer(tmp_path, detector=detector, criterion=criterion, ema_decay=0.9)
    trainer.device = trainer._learner.device = META
    pushed = []
    monkeypatch.setattr(trainer._readback, "push", lambda step, names, values: pushed.append(values) or [])
    for precision in ("fp32", "fp16"):
        trainer._scale = LossScale(META, precision)
        with copies:
            trainer._step(batch, 1.0, StopRequest())
    assert copies.waiting == []
    assert [values.device for values in pushed] == [META] * 2


def test_what_arrives_is_waited_for_on_its_own_device(monkeypatch):
    """An event of the current device, which may be another, would have passed before the copy is made."""
    streams = {torch.device("cuda", index): Mock() for index in (0, 1)}
    current = torch.device("cuda", 0)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=current: streams[device])
    values = Mock(is_cuda=True, device=torch.device("cuda", 1))
    Arriving(values).read()
    streams[values.device].record_event.return_value.synchronize.assert_called_once_with()


class Sent:
    """`detrkit.layers.Arriving` of "meta", which has nothing to send."""

    def __init__(self, values):
        self.values = values

    def read(self):
        return torch.ones(self.values.shape, dtype=self.values.dtype)


class Update(torch.optim.AdamW):
    """AdamW but for its update: the fused kernel, torch's own, does not know "meta"."""

    def __init__(self, groups, *, fused, **options):
        super().__init__(groups, **options)

    def step(self):
        pass


@pytest.mark.parametrize("name", RECIPES)
def test_detection_brings_nothing_from_the_host(name, copies, monkeypatch):
    """So a forward pass can be captured in a CUDA graph, with or without padding."""
    detector, _, batch = on_meta(name)
    batch, form = batch.to(META), detector.for_inference()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    copies.all = True
    for mask in (batch.mask, None):
        with torch.no_grad(), copies:
            form(batch.images, mask)
    assert copies.waiting == []
