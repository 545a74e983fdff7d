"""Boxes: forms, overlap, and the safe logit that turns a coordinate back into a raw number."""

from __future__ import annotations

import torch
from torch import Tensor


def center_to_corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) to (x0, y0, x1, y1), both [..., 4]."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def corners_to_center(boxes: Tensor) -> Tensor:
    """(x0, y0, x1, y1) to (cx, cy, w, h), both [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def overlaps(a: Tensor, b: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of two broadcastable sets of corner boxes [..., 4].

    GIoU = I / (U + eps) - (E - U) / (E + eps) with E the area of the smallest enclosing box
    (Rezatofighi et al., CVPR 2019). The DAB family adds eps = 1e-6; DETR adds nothing.
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    intersection = width * height
    union = _area(a) + _area(b) - intersection
    iou = intersection / (union + eps)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    width, height = (high - low).unbind(-1)
    enclosing = width * height
    return iou, iou - (enclosing - union) / (enclosing + eps)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """The logit of x, with x clipped to [0, 1] and both x and 1 - x held at `eps` or above.

    No gradient passes a clipped side. The DAB family (SAP-DETR too) uses eps = 1e-3, DETR's other
    descendants 1e-5.
    """
    # A clamp straight after another would be an invalid model once ONNX's optimiser has seen it. Through the view both
    # sides' gradients are added before those of other readers of x: to the bit as with one clamp before both.
    x = x.view_as(x)
    return torch.log(x.clamp(eps, 1.0) / (1 - x.clamp(0.0, 1.0)).clamp(min=eps))
