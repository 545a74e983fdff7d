"""Losses where predictions are as sure, as thin and as far off as float32 can say."""

import itertools

import pytest
import torch

import detrkit
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.structures import Output, Targets

SURE = (-1e30, -1e4, -104.0, -90.0, -17.0, 0.0, 16.0, 17.0, 90.0, 1e4, 1e30)
"""logits: 17 rounds to a chance of 1, -90 to one of a denormal number, -104 to 0"""
SIZES = (-1e4, -104.0, -50.0, 0.0, 20.0)
"""raw sizes of boxes: from 0 to the whole image"""
CLASSES = ("focal", "varifocal", "matchability", "iou_aware", "position_supervised", "giou_aware", "quality_focal")
GAMMAS = (0.0, 0.3, 1.0, 2.0)


def scene():
    """One image, a query for each pair of sizes, logits in turn; true boxes: the image, a dot in it, a thin one."""
    sizes = torch.tensor(list(itertools.product(SIZES, repeat=2)))
    raw = torch.cat((torch.zeros_like(sizes), sizes), dim=-1)[None, None].requires_grad_()
    count = raw.shape[2]
    order = torch.arange(count * 4) * 7 % len(SURE)
    logits = torch.tensor(SURE)[order].view(1, 1, count, 4).requires_grad_()
    boxes = raw.sigmoid()
    truth = torch.tensor([[0.5, 0.5, 1, 1], [0.5, 0.5, 1e-4, 1e-4], [0.5, 0.5, 0.3, 1e-3], [0.0, 1.0, 0.1, 0.1]])
    targets = Targets.pad([{"labels": torch.tensor([0, 1, 2, 2]), "boxes": truth}])
    output = Output(logits, boxes, points=boxes[..., :2], objectness=logits[..., 3:])
    return output, targets, (logits, raw)


@pytest.mark.parametrize("name", [*CLASSES, "objectness", "l1", "giou", "inner"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_losses_and_gradients_are_finite(name, gamma):
    options = {"gamma": gamma} if name in (*CLASSES, "objectness") else {}
    output, targets, leaves = scene()
    costs = {"class": detrkit.part("cost", "focal", objectness=True)(), "giou": detrkit.part("cost", "giou")()}
    matcher = HungarianMatcher(costs=costs)
    loss = detrkit.part("loss", name, **options)()(output, targets, matcher(output, targets), torch.tensor(4.0))
    assert matcher.bad_costs == 0
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    if loss.requires_grad:
        slopes = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
        assert all(slope.isfinite().all() for slope in slopes if slope is not None)
