"""A detector and its losses as one module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from detrkit.data import Batch
from detrkit.errors import UserError
from detrkit.evaluation.evaluate import autocast
from detrkit.losses.base import BESIDE, BaseCriterion

if TYPE_CHECKING:
    from detrkit.system import BaseDetector

AVERAGED = ("class_error",)  # numbers of the criterion that are means over objects, the others being sums


class Learner(nn.Module):
    """From images and truths to losses, so that whoever wraps it sees what the losses reach and what they do not.

    In training mode a batch norm whose scale and bias are frozen keeps its statistics, too, and computes by them.
    """

    def __init__(
        self,
        detector: nn.Module,
        criterion: BaseCriterion,
        device: torch.device,
        precision: str,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.detector, self.criterion = detector, criterion
        self.device, self.precision = device, precision
        self._predict = compiled_form(detector, device) if compiled else detector.__call__

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        for norm in frozen_norms(self.detector):
            norm.eval()
        return self

    def forward(self, batch: Batch, objects: Tensor, images: int) -> dict[str, Tensor]:
        """The losses of a batch, or of a piece of one with `images` images; see `BaseCriterion`."""
        with autocast(self.device, self.precision):
            output = self._predict(batch.images, batch.mask, batch.targets)
        losses = self.criterion(output, batch.targets, objects, images)
        if taken := losses.keys() & set(BESIDE):
            raise UserError(f'the criterion gives "{min(taken)}", which is what a training tells of its steps itself')
        return losses


def frozen_norms(detector: nn.Module) -> list[BatchNorm]:
    """The batch norms that have a scale or a bias, none of which is trained."""
    norms = [one for one in detector.modules() if isinstance(one, BatchNorm)]
    return [one for one in norms if (own := list(one.parameters())) and not any(each.requires_grad for each in own)]


def compiled_form(detector: nn.Module, device: torch.device) -> Callable[..., Any]:
    """The detector's forward pass by `torch.compile`, if it knows how to be one graph.

    Raises:
        UserError: it does not, or `torch.compile` does not work here.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # the compiler's own, of many kinds
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise UserError(
            f"train.compile = true, but torch.compile does not work here: {said}\nOn the CPU it needs a C++ compiler "
            "(g++, or $CXX), on a GPU Triton; or leave it false"
        ) from error
    if not hasattr(detector, "compiled"):
        raise UserError(
            f"train.compile = true asks the detector for `compiled()`, and {type(detector).__name__} has none; leave "
            "it false and compile the detector before: detector.compile()"
        )
    return cast("BaseDetector", detector).compiled()
