"""A training step as the trainer does it, in the forms that are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import torch
from gpu.setting import Setting
from torch import Tensor

import detrkit
from detrkit.backbones.folding import FoldedConv2d
from detrkit.engine.optimiser import build_optimiser, clip_and_step
from detrkit.evaluation.evaluate import autocast
from detrkit.recipe import Recipe


class Step:
    """Calling it does one optimiser step on a batch that stays on the device.

    Args:
        compiled: the forward pass as `train.compile` has it.
        folded: frozen norms as scales of weights; False: norms of every map.
        channels_last: the backbone's layout; False: weights and images channel by channel.
        fused: the optimiser's kernels; False: AdamW in several of them.
    """

    def __init__(
        self,
        setting: Setting,
        recipe: Recipe,
        *,
        compiled: bool = False,
        folded: bool = True,
        channels_last: bool = True,
        fused: bool = True,
    ):
        self.setting = setting
        self.detector = self._build(recipe, folded)
        if not channels_last:
            body = self.detector.backbone.body.to(memory_format=torch.contiguous_format)
            body.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
        self.criterion = detrkit.build_criterion(recipe)
        options = recipe.section("train")
        self.clip = options.clip_norm
        self.optimiser = build_optimiser(self.detector, options)
        if not fused:
            parameters = [p for p in self.detector.parameters() if p.requires_grad]
            self.optimiser = torch.optim.AdamW(parameters, lr=1e-4, foreach=True)
        self.fused = fused
        torch._dynamo.reset()  # torch 2.11 once went on without a graph for a detector after another one's
        self.forward: Callable = self.detector.compiled() if compiled else self.detector
        self.images, self.targets = setting.images(setting.batch), setting.targets(setting.batch)
        self.waited = self.idle = 0.0
        """milliseconds of all steps so far that the host waits for costs, and that the device waits for matches"""
        self._match = self.criterion.matcher.match
        self.criterion.matcher.match = self._timed_match

    def _build(self, recipe: Recipe, folded: bool) -> torch.nn.Module:
        with nullcontext() if folded else mock.patch("detrkit.backbones.timm_backbone.fold"):
            detector = detrkit.build_detector(recipe).to(self.setting.device).train()
        assert folded or not any(isinstance(module, FoldedConv2d) for module in detector.modules())
        return detector

    def _timed_match(self, requests):
        """Once the costs have come over, the device has nothing to do until the matches are back."""
        arrived, bring, start = [], Tensor.cpu, time.perf_counter()

        def cpu(tensor: Tensor, *given, **options) -> Tensor:
            values = bring(tensor, *given, **options)
            arrived.append(time.perf_counter())
            return values

        with mock.patch.object(Tensor, "cpu", cpu):
            found = self._match(requests)
        self.waited += 1000 * (arrived[0] - start)
        self.idle += 1000 * (time.perf_counter() - arrived[0])
        return found

    def losses(self) -> Tensor:
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
