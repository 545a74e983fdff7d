"""Milliseconds and memory of detectors, measured side by side."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrkit.compare.costs import for_counting
from detrkit.detector import build_detector
from detrkit.evaluation.evaluate import autocast
from detrkit.evaluation.precision import choose_device, choose_precision
from detrkit.recipe import Recipe
from detrkit.wording import counted

WARMUP, ROUNDS = 2, 10
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Forward passes of one detector.

    milliseconds: of each round, a batch at a time; memory: bytes that tensors held at the same time, weights included.
    """

    device: str
    precision: str
    batch: int
    height: int
    width: int
    milliseconds: tuple[float, ...]
    memory: int

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch / median(self.milliseconds)


def measure_timings(
    recipes: Mapping[str, Recipe],
    *,
    height: int,
    width: int,
    batch: int = 1,
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    progress: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time the detectors of recipes, by name. They take turns, so that whatever else the machine does meets all alike.

    Each runs on its recipe's `train.device` and in its `train.precision`, as its `for_inference()`, with fresh weights.

    Args:
        rounds: measured forward passes of each, after `warmup` that are not.
        progress: called after each forward pass.

    Raises UserError for a device or a precision that is not there.
    """
    prepared = {name: _prepare(recipe, batch, height, width) for name, recipe in recipes.items()}
    runs = {name: partial(milliseconds, run, device) for name, (run, device, _, _) in prepared.items()}
    with torch.inference_mode():
        times = take_turns(runs, rounds=rounds, warmup=warmup, progress=progress)
        memory = {name: peak_memory(run, device) + weights for name, (run, device, _, weights) in prepared.items()}
    return {
        name: Timing(device_name(device), precision, batch, height, width, tuple(times[name]), memory[name])
        for name, (_, device, precision, _) in prepared.items()
    }


def take_turns(
    runs: Mapping[str, Callable[[], T]],
    *,
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    progress: Callable[[], None] | None = None,
) -> dict[str, list[T]]:
    """What runs return, by name, in each round after the warm-up; in a round each runs once, one after another."""
    found: dict[str, list[T]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            value = run()
            if turn >= warmup:
                found[name].append(value)
            if progress is not None:
                progress()
    return found


@dataclass(frozen=True)
class Ratio:
    """How many times as long one took as the other, over the rounds: the median and the quartiles around it."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float], others: Sequence[float]) -> Ratio:
        """Of two that took turns: round by round, so that what slows a round down slows both. One has no spread."""
        ratios = [a / b for a, b in zip(times, others, strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return cls(middle, low, high)


def _prepare(recipe: Recipe, batch: int, height: int, width: int) -> tuple[Callable, torch.device, str, int]:
    options = recipe.section("train")
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    detector = build_detector(for_counting(recipe)[0]).to(device).for_inference()
    images = torch.randn(batch, 3, height, width, device=device, generator=torch.Generator(device).manual_seed(0))

    def run() -> Any:
        with autocast(device, precision):
            return detector(images)

    return run, device, precision, _bytes_of(detector) + images.nbytes


def milliseconds(run: Callable, device: torch.device) -> float:
    """How long a run takes, a GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def peak_memory(run: Callable, device: torch.device) -> int:
    """Bytes at the worst moment of one run, beyond what is held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with HeldMemory() as held:
        run()
    return held.peak


class HeldMemory(TorchDispatchMode):
    """Follows the storages that operations make until they are freed; what a kernel needs inside is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        """bytes, at present and at most so far"""
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {id(s) for s in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            key = storage.data_ptr()
            if id(storage) in given or key in self._known or not key:
                continue
            self._known.add(key)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes_of(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def device_name(device: torch.device) -> str:
    """What the device is, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({counted(torch.get_num_threads(), 'thread')})"
