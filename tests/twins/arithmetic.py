"""What the twins share: the plainest form of each, on vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear(layer, x: Tensor) -> Tensor:
    """W x + b of a vector."""
    return layer.weight @ x + layer.bias


def mlp(module, x: Tensor) -> Tensor:
    """Linear layers with ReLU between, or SiLU."""
    for layer in list(module.layers)[:-1]:
        x = linear(layer, x)
        x = x * (x > 0) if module.between is torch.relu else x * sigmoid(x)
    return linear(module.layers[-1], x)


def layer_norm(norm, x: Tensor) -> Tensor:
    away = x - x.sum() / len(x)
    return away / ((away * away).sum() / len(x) + norm.eps) ** 0.5 * norm.weight + norm.bias


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def clipped_logit(x: Tensor, eps: float) -> Tensor:
    """ln(x / (1 - x)) with both held at eps or above, and x in [0, 1]; what is clipped has no gradient."""
    value = min(max(x.item(), 0.0), 1.0)
    one = x if eps <= x <= 1 else torch.full_like(x, max(value, eps))
    other = 1 - x if 0 <= x <= 1 - eps else torch.full_like(x, max(1 - value, eps))
    return torch.log(one) - torch.log(other)


def head_of(x: Tensor, head: int, heads: int) -> Tensor:
    """A head's run of channels."""
    width = len(x) // heads
    return x[head * width : (head + 1) * width]


def sines(numbers, channels: int, temperature: float) -> Tensor:
    """The code of some numbers, one after the other: sine and cosine of 2 pi u / temperature^(2 pair / channels)."""
    code = []
    for u in numbers:
        for pair in range(channels // 2):
            angle = 2 * math.pi * u / temperature ** (2 * pair / channels)
            code += [torch.sin(angle), torch.cos(angle)]
    return torch.stack(code)


def softmax(logits: list[Tensor]) -> list[Tensor]:
    powers = [torch.exp(x) for x in logits]
    return [x / sum(powers) for x in powers]


def corners(box):
    """(x0, y0, x1, y1) of (cx, cy, w, h)."""
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def iou_and_giou(a, b, eps: float):
    """Of two boxes (cx, cy, w, h); eps is added to the union's and to the hull's area."""
    a, b = corners(a), corners(b)
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = wide * high if wide > 0 and high > 0 else wide * 0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = shared / (union + eps)
    return iou, iou - (hull - union) / (hull + eps)
