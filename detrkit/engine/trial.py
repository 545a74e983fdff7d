"""A step of a training, tried: how long an image takes on this machine's CPU, and how much memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detrkit.data.dataset import DataSource
from detrkit.detector import build_criterion, build_detector
from detrkit.recipe import Recipe


@dataclass(frozen=True)
class Trial:
    """What an image of a batch costs, padding and all."""

    seconds: float
    """to load it and to take it forward and backward, on the CPU; where other work holds the machine up, the time that
    this process computed"""
    kept: float
    """bytes that its step keeps for the backward pass, in float32"""


def try_step(recipe: Recipe, source: DataSource, *, batch_size: int) -> Trial:
    """Try the first batch of a recipe with a known class count, on the CPU.

    From the backbone's weights where the recipe names a file, else from random ones: nothing is fetched.

    Raises:
        DataError: an image cannot be read
        UserError: what the recipe asks for cannot be built; a file of weights that is not there or does not fit
    """
    with torch.random.fork_rng(devices=[]):
        detector = build_detector(recipe, pretrained=recipe.get("backbone.weights", None) is not None).train()
        criterion = build_criterion(recipe).train()
        begun = _clocks()
        batch = next(iter(source.loader(split="train", batch_size=batch_size, epoch=0, seed=0, workers=0)))
        loading = _since(begun) / torch.get_num_threads()  # which goes on beside the steps
        images = len(batch.targets)
        objects = torch.full((), float(max(1, sum(len(target["labels"]) for target in batch.targets))))
        owned = {tensor.untyped_storage().data_ptr() for tensor in detector.state_dict().values()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        seconds = []
        for _ in range(2):  # the first one warms up
            kept.clear()
            begun = _clocks()
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                output = detector(batch.images, batch.mask, batch.targets)
                losses = criterion(output, batch.targets, objects, images)
            losses["total"].backward()
            seconds.append(_since(begun))
    return Trial(seconds=(min(seconds) + loading) / images, kept=sum(kept.values()) / images)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _since(begun: tuple[float, float]) -> float:
    """Seconds of the clock, or of computing where that is less: then the process had to wait for a core."""
    return min(now - then for now, then in zip(_clocks(), begun, strict=True))


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, or in this machine for the CPU; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    rows = dict(line.split(":", 1) for line in lines)
    return int(rows["MemAvailable"].split()[0]) * 1024
