"""A training step as the trainer does it, in the forms that are compared."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from gpu.setting import Setting

import detrkit
from detrkit.engine.optimiser import build_optimiser, clip_and_step
from detrkit.evaluation.evaluate import autocast
from detrkit.recipe import Recipe


class Step:
    """Calling it does one optimiser step on a batch that stays on the device.

    Args:
        compiled: the forward pass by torch.compile.
        channels_last: the images' layout; the backbone's weights have it anyway.
        fused: the optimiser's kernels; False: AdamW in many small ones.
    """

    def __init__(
        self,
        setting: Setting,
        recipe: Recipe,
        *,
        compiled: bool = False,
        channels_last: bool = False,
        fused: bool = True,
    ):
        self.setting = setting
        self.detector = detrkit.build_detector(recipe).to(setting.device).train()
        self.criterion = detrkit.build_criterion(recipe)
        options = recipe.section("train")
        self.clip = options.clip_norm
        self.optimiser = build_optimiser(self.detector, options)
        if not fused:
            parameters = [p for p in self.detector.parameters() if p.requires_grad]
            self.optimiser = torch.optim.AdamW(parameters, lr=1e-4, foreach=True)
        self.fused = fused
        self.forward: Callable = torch.compile(self.detector) if compiled else self.detector
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.images = setting.images(setting.batch).contiguous(memory_format=layout)
        self.targets = setting.targets(setting.batch)
        self.waited = 0.0
        """milliseconds that matching took of all steps so far, its wait for the device included"""
        self._match = self.criterion.matcher.match
        self.criterion.matcher.match = self._timed_match

    def _timed_match(self, requests):
        start = time.perf_counter()
        found = self._match(requests)
        self.waited += 1000 * (time.perf_counter() - start)
        return found

    def losses(self) -> torch.Tensor:
        """The total, with graph."""
        with autocast(self.setting.device, self.setting.precision):
            output = self.forward(self.images, None, self.targets)
        return self.criterion(output, self.targets)["total"]

    def __call__(self) -> None:
        self.losses().backward()
        if self.fused:
            clip_and_step(self.optimiser, self.clip)
        else:
            torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self.clip)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
