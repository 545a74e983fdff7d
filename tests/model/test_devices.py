"""Nothing of a step or of detection is on another device than the rest.

On a CUDA device without memory (tests/fake_cuda.py), with the parts of every kind under autocast to half precision:
where a CPU takes anything, a GPU refuses an operation on tensors of two devices.
"""

import traceback

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import detrkit
from detrkit.data import Batch
from detrkit.evaluation.evaluate import autocast, evaluate
from tests.fake_cuda import CUDA, devices, fake_cuda, to_cuda
from tests.small import SMALL

EIGHT = "queries.count=8"
RECIPES = {
    "sap_detr_plus_r50_50ep": ["queries.grid=[3, 4]"],
    "sap_dino_r50_12ep": ["queries.grid=[3, 4]"],
    "dino_4scale_relation_r50_12ep": [EIGHT],
    "ms_deformable_detr_4scale_r50_12ep": [EIGHT],
    "h_deformable_detr_4scale_r50_12ep": [EIGHT],
    "stable_dino_4scale_r50_12ep": [EIGHT],
    "anchor_detr_r50_50ep": ["queries.points=4", "queries.patterns=2"],
    "sam_detr_smca_r50_50ep": [EIGHT],
    "rt_detr_r18_72ep": [EIGHT],
    "sap_dino_4scale_mixed_r50_12ep": ["queries.grid=[3, 4]"],
    "ddq_detr_4scale_r50_12ep": [EIGHT, "blocks.dense.count=12"],
    "align_detr_4scale_r50_12ep": [EIGHT],
}


def built(name):
    recipe = detrkit.load_recipe(name, [*SMALL, *RECIPES[name], "detector.classes=5"])
    return detrkit.build_detector(recipe), detrkit.build_criterion(recipe)


def batch():
    """Three images with 2, 0 and 3 objects, one of them padded."""
    mask = torch.zeros(3, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    targets = [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.full((n, 4), 0.5)} for n in (2, 0, 3)]
    return Batch(torch.zeros(3, 3, 64, 96), mask, targets, [1, 2, 3], torch.tensor([[64, 96]] * 3))


def test_what_a_gpu_refuses_is_refused():
    with fake_cuda():
        there, here = torch.zeros(3).to(CUDA), torch.zeros(3)
        with pytest.raises(RuntimeError, match="device"):
            there + here
        with pytest.raises(RuntimeError, match="device"):
            here[torch.zeros(2, dtype=torch.int64).to(CUDA)]
        with autocast(CUDA, "bf16"):
            assert (there[:, None] @ there[None]).dtype == torch.bfloat16
        assert (here + 1).tolist() == [1, 1, 1]


class Sends(TorchDispatchMode):
    """Notes what the host sends to the device in ways for which it may have to wait, with the line that does.

    A copy of more than 64 KiB waits unless it comes from pinned memory, and no watch of PyTorch's own notices.
    """

    def __init__(self):
        super().__init__()
        self.pinned, self.waiting = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and "device" in kwargs:
            is_pinned = args[0].is_contiguous() and any(args[0] is one for one in self.pinned)
            if not (is_pinned and kwargs.get("non_blocking")):
                lines = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "/detrkit/" in f.filename]
                self.waiting.append(lines[-1])
        return function(*args, **kwargs)

    def pin(self, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: self.pinned.append(values) or values)


def first_half(boxes, scores, iou):
    """Stands for a suppression, whose number of boxes depends on values."""
    return torch.arange(len(scores) // 2, device=boxes.device)


def fused(attend):
    """Attention that refuses what a GPU's fused kernels refuse and a CPU's take (ATen's sdp_utils_cpp.h): slow there.

    Masks whose last axis has another stride than 1, widths that are no multiple of 8, other heads of keys or values.
    """

    def attended(query, key, value, mask=None, *rest, **options):
        given = [query, key, value] if mask is None else [query, key, value, mask]
        assert [tensor.stride(-1) for tensor in given] == [1] * len(given)
        assert not any(tensor.shape[-1] % 8 for tensor in (query, key, value))
        assert query.shape[:2] == key.shape[:2] == value.shape[:2]
        return attend(query, key, value, mask, *rest, **options)

    return attended


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_and_a_detection_stay_on_the_device(name, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused(F.scaled_dot_product_attention))
    monkeypatch.setattr("detrkit.queries.distinct.nms", first_half)
    monkeypatch.setattr("detrkit.suppression.nms", first_half)
    detector, criterion = built(name)
    with fake_cuda(), monkeypatch.context() as within:
        to_cuda(detector).train()
        sends = Sends()
        sends.pin(within)
        with sends:
            given = batch().to(CUDA)
            for mask, precision in ((given.mask, "bf16"), (None, "fp16")):
                with autocast(CUDA, precision):
                    output = detector(given.images, mask, given.targets)
                losses = criterion(output, given.targets)
                assert devices((vars(output), losses)) == {"cuda"}
                assert {losses["total"].dtype, output.boxes.dtype} == {torch.float32}
            with autocast(CUDA, "bf16"):
                found = detector.eval().detect(given.images, given.mask, given.sizes)
        assert devices(found) == {"cuda"}
        assert len(sends.pinned) > 5
        assert sends.waiting == []


def test_an_evaluation_brings_what_is_found_to_the_host():
    recipe = detrkit.load_recipe("quickstart", ["data.val_images=3", "data.image_size=64"])
    detector, source = detrkit.build_detector(recipe), recipe.section("data")()
    with fake_cuda():
        result = evaluate(to_cuda(detector), source, batch_size=2, device=CUDA, workers=0, precision="bf16")
    assert len(result.detections) == 3 * 36 * len(source.categories)
