"""Weights that are cast once: the very detections of weights that are cast in every pass."""

import copy

import pytest
import torch
from torch import nn

import detrkit.system
from detrkit.attention.multihead import MultiHeadAttention
from detrkit.casts import CastsOnce, keep_casts
from tests.model.test_inference_form import trained

SYSTEMS = [
    "sap_dino_r50_12ep",
    "anchor_detr_r50_50ep",
    "deformable_detr_4scale_two_stage_r50_50ep",
    "faster_rcnn_r50_108ep",
]


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_outputs_are_the_same_to_the_last_bit(name, monkeypatch):
    detector = trained(name).float()
    kept = detector.for_inference()
    monkeypatch.setattr(detrkit.system, "keep_casts", lambda _: None)
    plain = detector.for_inference()
    images, sizes = torch.randn(1, 3, 96, 128), [[96, 128]]
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            [found], [expected] = (form.detect(images, None, sizes) for form in (kept, plain))
            assert len(expected["scores"])
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    cast = [m for m in kept.modules() if isinstance(m, CastsOnce) and m.casts]
    assert len(cast) > 10
    assert not any(m.casts for m in plain.modules() if isinstance(m, CastsOnce))


def layers():
    torch.manual_seed(0)
    attention = MultiHeadAttention(width=8, heads=2).eval()
    return nn.ModuleList([nn.Linear(8, 8), nn.Conv2d(8, 8, 1, bias=False), attention]).requires_grad_(False)


def run(parts):
    x = torch.linspace(-1, 1, 48).view(1, 6, 8)
    linear, convolution, attention = parts
    return torch.cat((linear(x), convolution(x.mT[..., None])[..., 0].mT, attention(x, x, x)))


def test_casts_follow_the_weights_and_the_number_format():
    parts = layers()
    kept = copy.deepcopy(parts)
    keep_casts(kept)
    assert torch.equal(run(kept), run(parts))
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(run(kept), run(parts))
            for parameter in (*kept.parameters(), *parts.parameters()):
                parameter.add_(0.5)
            assert torch.equal(run(kept), run(parts))
    copied = copy.deepcopy(kept)
    next(copied.parameters()).zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(run(copied), run(kept))


def test_training_keeps_no_casts():
    parts = layers().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        run(parts).sum().backward()
    assert parts[2].casts is None
    assert all(parameter.grad is not None for parameter in parts.parameters())


def test_a_gradient_passes_through_casts_that_inference_made():
    parts = layers()
    keep_casts(parts)
    x = torch.linspace(-1, 1, 48).view(1, 6, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            run(parts)
        parts[2](x, x, x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()
