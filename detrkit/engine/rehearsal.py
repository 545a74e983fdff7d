"""One small step before a training begins, so that parts which do not go together are named before a run is made."""

from __future__ import annotations

import copy

import torch
from torch import nn

from detrkit.errors import UserError

HEIGHT, WIDTH = 64, 96


def rehearse(detector: nn.Module, criterion: nn.Module, *, name: str) -> None:
    """Predict and take losses of two small images with copies of both, which stay on the CPU and as they were.

    Some needs show only there: a term that asks for a box's sides, a cost that asks for points.

    Args:
        name: the recipe's, for the message.

    Raises:
        UserError: what a part needs and does not get.
    """
    images = torch.zeros(2, 3, HEIGHT, WIDTH)
    mask = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    mask[1, :, WIDTH // 2 :] = True
    targets = [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.full((n, 4), 0.5)} for n in (2, 0)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            detector, criterion = copy.deepcopy(detector).train(), copy.deepcopy(criterion).train()
            # The number of objects is given, as processes would have to agree on it.
            criterion(detector(images, mask, targets), targets, torch.ones(()), len(targets))
        except UserError as error:
            raise UserError(f"the parts of {name} do not go together: {error}") from error
        except Exception:
            return  # a part that cannot be copied, or runs on GPUs alone: the training itself tells
