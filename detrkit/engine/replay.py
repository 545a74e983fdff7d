"""A step that was not finite in one file, and what computes it again."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.data import Batch
from detrkit.engine.learner import AVERAGED, Learner
from detrkit.engine.microbatch import count_objects, cut
from detrkit.errors import CheckpointError
from detrkit.losses.base import BaseCriterion
from detrkit.reading import not_finite
from detrkit.recipe.recipe import parse_recipe
from detrkit.runs.checkpoint import load_exactly, read_weights, save_weights
from detrkit.writing import replaced_file

WEIGHTS, BATCH = "weights.", "batch."


@dataclass(frozen=True)
class Settings:
    """What a step's numbers depend on beside its batch and weights."""

    step: int
    """steps done before it"""
    weights_step: int
    """steps done in the weights that are kept: on a GPU the fault is known when one more has been done"""
    seed: int
    rank: int
    objects: float
    """that losses are divided by"""
    micro_batch: int
    precision: str


@dataclass(frozen=True)
class Findings:
    """What a step gives when it is computed again; names are in the order in which things are computed."""

    losses: Mapping[str, float]
    module: str | None
    """the first module that made something not finite of what was finite"""
    operation: str | None
    """what PyTorch names as the first operation of the backward pass whose gradient is NaN"""
    weights: list[str]
    """tensors of the detector that are not finite to begin with, or the images"""
    gradients: list[str]
    """parameters whose gradients are not finite"""

    @property
    def is_finite(self) -> bool:
        """Whether nothing went wrong this time."""
        return not (self.module or self.weights or self.gradients) and all(map(np.isfinite, self.losses.values()))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and PyTorch for one step of one process."""
    python, numpy, pytorch = np.random.SeedSequence([seed, step, rank]).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)


def write_step(path: Path, detector: nn.Module, batch: Batch, settings: Settings, metadata: Mapping[str, str]) -> None:
    """Write a step; metadata: a run's weights', with their recipe."""
    tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in detector.state_dict().items()}
    tensors |= {f"{BATCH}images": batch.images, f"{BATCH}sizes": batch.sizes}
    if batch.mask is not None:
        tensors[f"{BATCH}mask"] = batch.mask
    for place, target in enumerate(batch.targets):
        tensors |= {f"{BATCH}{place}.{key}": value for key, value in target.items()}
    said = {"settings": json.dumps(vars(settings)), "images": json.dumps(list(map(int, batch.image_ids)))}
    with replaced_file(path) as temporary:
        save_weights(tensors, temporary, {**metadata, **said})


def read_step(path: Path) -> tuple[dict[str, Tensor], Batch, Settings, Mapping[str, str]]:
    """The weights, batch and settings of a file of `write_step`, and its metadata.

    Raises CheckpointError if it is something else.
    """
    tensors, metadata = read_weights(path)
    try:
        settings, images = Settings(**json.loads(metadata["settings"])), json.loads(metadata["images"])
        own = {name.removeprefix(BATCH): tensor for name, tensor in tensors.items() if name.startswith(BATCH)}
        targets: list[dict[str, Tensor]] = [{} for _ in images]
        for name, tensor in own.items():
            place, point, key = name.partition(".")
            if point:
                targets[int(place)][key] = tensor
        batch = Batch(own["images"], own.get("mask"), targets, images, own["sizes"])
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path} is no step that a training has kept, as RUN/not_finite/*.safetensors are ({error})"
        ) from None
    weights = {name.removeprefix(WEIGHTS): t for name, t in tensors.items() if name.startswith(WEIGHTS)}
    return weights, batch, settings, metadata


def replay(
    path: Path, *, device: torch.device | str = "cpu", precision: str | None = None, trust: bool = False
) -> Findings:
    """Compute a step that a training has kept once more, and find where it stops to be finite.

    Args:
        precision: "fp32", "bf16", ...; the training's if None

    Raises:
        CheckpointError: the file is something else, has no recipe, or its weights do not fit that.
        UserError: its recipe names code that is not trusted.
    """
    from detrkit.detector import build_criterion, build_detector
    from detrkit.engine.optimiser import build_optimiser

    weights, batch, settings, metadata = read_step(path)
    if "recipe" not in metadata:
        raise CheckpointError(
            f"{path} is of a training without a recipe (`fit`); detrkit.engine.replay.compute takes its detector and "
            "criterion, and what read_step gives"
        )
    recipe = parse_recipe(metadata["recipe"], path, run=path.parent.parent, trust=trust)
    detector = build_detector(recipe, pretrained=False)
    load_exactly(detector, weights, path)
    build_optimiser(detector, recipe.section("train"))  # which may freeze parts
    return compute(
        detector.to(device),
        build_criterion(recipe).to(device),
        batch,
        settings,
        device=torch.device(device),
        precision=precision or settings.precision,
    )


def compute(
    detector: nn.Module,
    criterion: BaseCriterion,
    batch: Batch,
    settings: Settings,
    *,
    device: torch.device,
    precision: str,
) -> Findings:
    """The same of a detector and its criterion."""
    learner = Learner(detector, criterion, device, precision).train()
    named = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    weights = not_finite({**detector.state_dict(), "the images": batch.images.to(device)})

    def step() -> dict[str, float]:
        seed_step(settings.seed, settings.step, settings.rank)
        detector.zero_grad()
        totals: dict[str, float] = {}
        for piece in cut(batch, settings.micro_batch, device):
            objects = torch.full((), settings.objects, device=device)
            losses = learner(piece, objects, len(batch.targets))
            losses["total"].backward()
            for name, value in losses.items():
                share = count_objects(piece) / settings.objects if name in AVERAGED else 1.0
                totals[name] = totals.get(name, 0.0) + share * float(value.detach())
        return totals

    kept = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    with _first_fault(learner) as found:
        losses = step()
    gradients = not_finite({name: p.grad for name, p in named.items() if p.grad is not None})
    operation = None
    if gradients and np.isfinite(losses["total"]):  # only the way back is at fault
        for name, buffer in detector.named_buffers():
            buffer.copy_(kept[name])
        try:
            with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly(check_nan=True):
                step()
        except RuntimeError as error:
            operation = str(error).splitlines()[0]
    return Findings(losses, found.get("module"), operation, weights, gradients)


@contextmanager
def _first_fault(learner: nn.Module) -> Iterator[dict[str, str]]:
    """Within it, the name of the first module that makes something not finite of what is finite."""
    found: dict[str, str] = {}

    def look(name: str, inputs: Any, outputs: Any) -> None:
        if not found and not _is_sound(outputs) and _is_sound(inputs):  # the innermost is looked at first
            found["module"] = name.removeprefix("detector.")

    handles = [
        one.register_forward_hook(lambda _, given, made, name=name: look(name, given, made))
        for name, one in learner.named_modules()
        if name
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_sound(values: Any) -> bool:
    """Without NaN and infinity; what is minus infinity may be a mask."""
    if isinstance(values, Tensor):
        return not values.is_floating_point() or not bool((values.isnan() | (values == torch.inf)).any())
    if isinstance(values, Mapping):
        return all(map(_is_sound, values.values()))
    if isinstance(values, (list, tuple)):
        return all(map(_is_sound, values))
    return _is_sound(vars(values)) if is_dataclass(values) else True
