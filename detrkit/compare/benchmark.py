"""How fast detectors are, side by side in one run, and how near to what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor

from detrkit.compare.costs import for_counting
from detrkit.compare.timing import milliseconds, peak_memory, take_turns
from detrkit.compare.workload import measure_workload
from detrkit.detector import build_criterion, build_detector
from detrkit.engine.optimiser import build_optimiser, clip_and_step
from detrkit.engine.recomputing import recompute
from detrkit.errors import UserError
from detrkit.evaluation.evaluate import autocast, detect
from detrkit.evaluation.precision import HALF
from detrkit.losses.criterion import Criterion
from detrkit.matching.base import Matcher
from detrkit.onednn import linear
from detrkit.recipe import Recipe
from detrkit.structures import Matches, Output, Target, Targets

PARTS = ("forward", "losses", "matching", "backward", "optimiser")
MATRIX = "matrix product"  # what the machine's rate is measured with, which takes turns as a row does
OBJECTS = 8  # of each image in a training step
LOADED_BATCHES = 8


class Stopwatch:
    """Milliseconds of the parts of a step, from one lap to the next; a GPU is waited for at each."""

    def __init__(self, device: torch.device):
        self.device, self.parts = device, dict.fromkeys(PARTS, 0.0)
        self._last = self._now()

    def lap(self, part: str) -> None:
        """What was done since the last lap was of this part."""
        now = self._now()
        self.parts[part] += 1000 * (now - self._last)
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Subject:
    """A detector to be measured: ours by `of_recipe`, another's by whoever knows it.

    detect: images [B, 3, H, W] to detections; step: a training step on images and their truths, which tells a stopwatch
    when a part is done; classes: K; work: multiply-adds of an image's detection, None where they are not counted.
    """

    name: str
    detect: Callable[[Tensor], Any]
    step: Callable[[Tensor, list[Target], Stopwatch], None]
    classes: int
    work: int | None = None


@dataclass
class Speed:
    """What was measured of a subject, a value for each round."""

    name: str
    work: int | None
    detection: dict[int, list[float]] = field(default_factory=dict)
    """milliseconds of a batch, by its images"""
    step: dict[str, list[float]] = field(default_factory=dict)
    """milliseconds of each part of a training step"""
    memory: dict[str, int] = field(default_factory=dict)
    """bytes that tensors held at the worst moment, beyond weights and what the optimiser keeps, by what was run"""
    loaded: float | None = None
    """training images a second that one worker prepares; None without the data"""

    @property
    def steps(self) -> list[float]:
        """Milliseconds of whole training steps."""
        return [sum(parts) for parts in zip(*self.step.values(), strict=True)]


@dataclass(frozen=True)
class Benchmark:
    """Speeds of subjects that took turns; rate: multiply-adds a second of a large matrix product, in turn with them."""

    speeds: list[Speed]
    rate: float
    device: torch.device
    precision: str
    height: int
    width: int
    step_batch: int
    rounds: int

    def limit(self, speed: Speed, batch: int) -> float | None:
        """Milliseconds that a batch's matrix products alone would take at the machine's rate."""
        return None if speed.work is None else 1000 * batch * speed.work / self.rate

    def share(self, speed: Speed, batch: int) -> float | None:
        """How much of that rate detection reaches, in [0, 1]."""
        limit = self.limit(speed, batch)
        return None if limit is None else limit / median(speed.detection[batch])


def measure(
    subjects: Sequence[Subject],
    *,
    device: torch.device,
    precision: str,
    height: int,
    width: int,
    batches: Sequence[int] = (1, 8),
    step_batch: int = 2,
    rounds: int = 10,
    progress: Callable[[], None] | None = None,
) -> Benchmark:
    """Detection of batches and training steps of all subjects, in turns, so that what slows the machine slows all.

    Args:
        precision: "fp32", "bf16" or "fp16".
        batches: how many images are detected at once; () for no detection.
        step_batch: how many a training step takes; 0 for no training.
        progress: called after each run; see `runs_of`.

    Raises UserError for two subjects of one name.
    """
    names = [s.name for s in subjects]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two of the recipes are called {twice[0]}; give one of the files another name")
    speeds = {s.name: Speed(s.name, s.work) for s in subjects}
    generator = torch.Generator().manual_seed(0)

    def images(batch: int) -> Tensor:
        return torch.randn(batch, 3, height, width, generator=generator).to(device)

    matrix: list[float] = []
    turns: dict[str, Any] = {"rounds": rounds, "progress": progress}
    for batch in batches:
        given = images(batch)
        runs = {s.name: partial(s.detect, given) for s in subjects}
        with torch.inference_mode(), autocast(device, precision):
            timed = {name: partial(milliseconds, run, device) for name, run in runs.items()}
            taken = take_turns(timed | {MATRIX: _matrix_product(device, precision)}, **turns)
            matrix += taken.pop(MATRIX)
            for name, times in taken.items():
                speeds[name].detection[batch] = times
                speeds[name].memory[f"detection of {batch}"] = peak_memory(runs[name], device)
    if step_batch:
        given, truths = images(step_batch), _truths(step_batch, min(s.classes for s in subjects), device, generator)
        steps = {s.name: partial(_step, s, given, truths, device) for s in subjects}
        for name, laps in take_turns(steps, **turns).items():
            speeds[name].step = {part: [lap[part] for lap in laps] for part in PARTS}
            speeds[name].memory["training step"] = peak_memory(steps[name], device)
    rate = 1000 * matrix_rows(device) ** 3 / median(matrix) if matrix else float("nan")
    return Benchmark(list(speeds.values()), rate, device, precision, height, width, step_batch, rounds)


def of_recipe(recipe: Recipe, *, device: torch.device, precision: str, height: int, width: int) -> Subject:
    """A recipe's detector with fresh weights: its `for_inference()`, and a step as the trainer does it, in one piece.

    Raises UserError if its parts do not go together.
    """
    counted, _ = for_counting(recipe)
    detector, criterion = build_detector(counted), build_criterion(counted)
    work = measure_workload(detector, height=height, width=width).total.multiply_adds
    detector.to(device)
    criterion.to(device)
    form, options = detector.for_inference(), counted.section("train")
    optimiser = build_optimiser(detector, options)
    recompute(detector, options.recompute)

    def step(images: Tensor, targets: list[Target], watch: Stopwatch) -> None:
        if isinstance(criterion, Criterion):
            criterion.matcher = _WatchedMatcher(criterion.matcher, watch)
        with autocast(device, precision):
            output = detector.train()(images, None, targets)
        watch.lap("forward")
        losses = criterion(output, targets)
        watch.lap("losses")
        losses["total"].backward()
        watch.lap("backward")
        clip_and_step(optimiser, options.clip_norm)
        watch.lap("optimiser")

    return Subject(
        name=recipe.name,
        detect=lambda images: detect(form, images, None, [[height, width]] * len(images)),
        step=step,
        classes=counted.get("detector.classes"),
        work=work,
    )


def loaded_images(recipe: Recipe, batch: int) -> float | None:
    """Training images a second that one worker prepares for a recipe; None if its data are not here, or one batch."""
    try:
        loader = recipe.section("data")().loader(split="train", batch_size=batch, epoch=0, seed=0, workers=1)
        batches = iter(loader)
        next(batches)  # the worker starts
        begin = time.perf_counter()
        images = sum(len(one.images) for one in islice(batches, LOADED_BATCHES))
        return images / (time.perf_counter() - begin) if images else None
    except UserError:
        return None


def runs_of(subjects: int, batches: int, *, training: bool, rounds: int, warmup: int) -> int:
    """How often `measure` calls its `progress`."""
    return ((subjects + 1) * batches + subjects * training) * (rounds + warmup)


class _WatchedMatcher(Matcher):
    """A criterion's matcher that tells a stopwatch its share."""

    def __init__(self, inner: Matcher, watch: Stopwatch):
        super().__init__()
        self.inner: Matcher = inner.inner if isinstance(inner, _WatchedMatcher) else inner
        self.watch = watch

    def match(self, requests: Sequence[tuple[Output, Targets]]) -> Sequence[Matches | Sequence[Matches]]:
        self.watch.lap("losses")
        found = self.inner.match(requests)
        self.watch.lap("matching")
        return found


def _step(subject: Subject, images: Tensor, truths: list[Target], device: torch.device) -> Mapping[str, float]:
    watch = Stopwatch(device)
    subject.step(images, truths, watch)
    return watch.parts


def _truths(batch: int, classes: int, device: torch.device, generator: torch.Generator) -> list[Target]:
    """Objects of random classes, places and sizes, within their images."""
    found = []
    for _ in range(batch):
        sizes = 0.05 + 0.3 * torch.rand(OBJECTS, 2, generator=generator)
        places = sizes / 2 + (1 - sizes) * torch.rand(OBJECTS, 2, generator=generator)
        labels = torch.randint(classes, (OBJECTS,), generator=generator)
        found.append({"labels": labels.to(device), "boxes": torch.cat((places, sizes), dim=-1).to(device)})
    return found


def matrix_rows(device: torch.device) -> int:
    """Rows and columns of the matrices that the machine's rate is measured with.

    A GPU multiplies those of 2048 in 20 microseconds, less than it takes to ask for it and to wait.
    """
    return 2048 if device.type == "cpu" else 8192


def _matrix_product(device: torch.device, precision: str) -> Callable[[], float]:
    """What measures the milliseconds of a large matrix product."""
    dtype = HALF.get(precision, torch.float32)
    rows = matrix_rows(device)
    a, b = (torch.randn(rows, rows, device=device, dtype=dtype) for _ in range(2))
    return partial(milliseconds, lambda: linear(a, b), device)
