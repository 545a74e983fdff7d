"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from detrkit.engine.options import TrainOptions


def rate_factor(step: int, *, steps_per_epoch: int, options: TrainOptions) -> float:
    """What the full learning rates are multiplied by at optimiser step `step` (from 0).

    Warm-up: from `warmup_factor` at step 0 to 1 at step `warmup_steps`, with the step's share of them to the power
    `warmup_power`. It multiplies the schedule: `step` drops by `drop_factor` at the first step of each of
    `drop_epochs`; `cosine` falls from 1 at the end of the warm-up to 0 after the last step; `flat_cosine` from 1 after
    `flat_epochs` to `lowest`, `low_epochs` before the end.
    """
    warm = 1.0
    if step < options.warmup_steps:
        share = (step / options.warmup_steps) ** options.warmup_power
        warm = options.warmup_factor * (1 - share) + share
    if options.schedule == "cosine":
        total = options.epochs * steps_per_epoch
        done = max(0, step - options.warmup_steps) / max(1, total - options.warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if options.schedule == "flat_cosine":
        start, end = options.flat_epochs * steps_per_epoch, (options.epochs - options.low_epochs) * steps_per_epoch
        done = max(0, step - start) / max(1, end - start)
        return warm * (options.lowest + (1 - options.lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    drops = sum(step >= epoch * steps_per_epoch for epoch in options.drop_epochs)
    return warm * options.drop_factor**drops
