"""A case of a whole official detector without its backbone: weights and features by rule, numbers stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import detrkit
from detrkit.blocks.denoising import Draws
from detrkit.detector import Detector
from detrkit.losses.criterion import Criterion
from detrkit.structures import FeatureMap, Output, Target
from detrkit.zoo.conversion import Conversion, match
from tests.parity import golden

CHANNELS = (48, 192, 96)
SHAPES = ((8, 10), (4, 5), (2, 3))
SIZES = ((64, 80), (48, 56))
"""pixels (height, width) of the two images"""
WHOLE = ((8, 8), (4, 4), (2, 2))
"""shapes of the levels in a case without padding"""


def draw(name: str, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) that the name decides."""
    return torch.from_numpy(golden.random_state(name).random_sample(shape)).float()


def weight(name: str, shape: list[int]) -> Tensor:
    """The weights of that official name: norms about 1, other vectors small, matrices of about unit gain."""
    if not shape:  # a counter
        return torch.zeros((), dtype=torch.int64)
    values = draw(name, *shape)
    if name.endswith("running_var"):
        return 0.5 + values
    if len(shape) == 1:
        return 0.5 + values if name.endswith("weight") else (values - 0.5) * 0.5
    if any(part in name for part in ("label_e", "tgt_embed", "denoising_class")):
        values = 2 * values - 1
        if "denoising_class" in name:
            values[-1] = 0  # of no class
        return values
    return (2 * values - 1) * (1.5 / values[0].numel() ** 0.5)


def probe(name: str, gradient: Tensor) -> Tensor:
    """A gradient's norm, and its product with numbers that the official name decides."""
    return torch.stack((gradient.norm(), (gradient * (draw(f"probe.{name}", *gradient.shape) - 0.5)).sum()))


class StoredFeatures(nn.Module):
    """A backbone of three levels that has seen the case's images."""

    channels = CHANNELS

    def forward(self, images: Tensor, mask: Tensor | None) -> list[FeatureMap]:
        features = []
        for index, (channels, shape) in enumerate(zip(CHANNELS, WHOLE if mask is None else SHAPES, strict=True)):
            small = None if mask is None else nn.functional.interpolate(mask[None].float(), size=shape)[0].bool()
            features.append(FeatureMap(draw(f"feature{index}", 2, channels, *shape) * 2 - 1, small, mask))
        return features


class Case:
    """The stored numbers of one code.

    Args:
        name: of the file beside this one, without its ending.
        recipe: of the system.
        overrides: that make it as small as the case.
        padded: whether the second image is smaller than the first.
    """

    def __init__(self, name: str, recipe: str, overrides: list[str], *, padded: bool = True):
        with safe_open(Path(__file__).parent / f"{name}.safetensors", "pt") as file:
            self.stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            shapes: dict[str, list[int]] = json.loads(file.metadata()["weights"])
        self.official = {key: weight(key, shape) for key, shape in shapes.items()}
        self.recipe = detrkit.load_recipe(recipe, [*SMALL, *overrides])
        self.mask = torch.ones(2, 64, 80, dtype=torch.bool) if padded else None
        for image, (height, width) in enumerate(SIZES if padded else ()):
            self.mask[image, :height, :width] = False
        self.targets: list[Target] = []
        for image, labels in enumerate(([1, 4, 2], [0, 3])):
            numbers = draw(f"truth{image}", len(labels), 4)
            boxes = torch.cat((0.3 + 0.4 * numbers[:, :2], 0.1 + 0.3 * numbers[:, 2:]), dim=-1)
            self.targets.append({"labels": torch.tensor(labels), "boxes": boxes})

    def conversion(self) -> Conversion:
        return match(self.official, self.recipe)

    def build(self) -> tuple[Detector, Criterion]:
        """The detector with the official weights on the stored features, and what trains it."""
        detector = detrkit.build_detector(self.recipe, pretrained=False)
        lacking, strange = detector.load_state_dict(self.conversion().state, strict=False)
        assert not strange
        assert all(name.startswith("backbone.") for name in lacking)
        detector.backbone = StoredFeatures()
        return detector, detrkit.build_criterion(self.recipe)

    def draws(self, entries: int) -> Draws:
        """The noise that the official code drew."""
        noise = {key[6:]: value for key, value in self.stored.items() if key.startswith("noise.")}
        assert len(noise["flip"]) == entries
        return Draws(noise["flip"], noise["flipped"], noise["boxes"], torch.zeros(entries, 2), noise["signs"])

    def predict(self, detector: Detector) -> Output:
        return detector(torch.zeros(2, 3, 64, 64 if self.mask is None else 80), self.mask, self.targets)

    def placed(self) -> Collection[str]:
        """The tensors that found their places, by the names they were asked for; but for the backbone nothing lacks."""
        found = self.conversion()
        assert not found.unexpected
        assert not found.mismatched
        assert all(name.startswith("backbone.") for name in found.missing)
        return found.names.keys()

    def check_losses(self, losses: Mapping[str, Tensor], official_name: Callable[[str], str]) -> None:
        """A training step's losses are those that are stored, by the names that `official_name` gives them."""
        terms = {name: loss for name, loss in losses.items() if name not in ("total", "class_error")}
        assert {official_name(name) for name in terms} == {key[2:] for key in self.stored if key.startswith("l.")}
        for name, loss in terms.items():
            assert loss.item() == pytest.approx(self.stored[f"l.{official_name(name)}"].item(), rel=1e-4), name
        assert losses["total"].item() == pytest.approx(self.stored["total"].item(), rel=1e-4)

    @property
    def held(self) -> set[str]:
        """The official names of the tensors whose gradients are stored."""
        return {key[2:] for key in self.stored if key.startswith("g.")}

    def check_gradients(self, detector: Detector) -> None:
        """Every stored gradient is ours; rows that we have beyond the official ones (of no class) are not looked at."""
        ours = self.conversion().names
        for name in self.held:
            like = self.official[name]
            self.check_gradient(name, detector.get_parameter(ours[name]).grad[: len(like)].view(like.shape))

    def check_gradient(self, name: str, gradient: Tensor) -> None:
        """One of them, by its official name."""
        expected = self.stored[f"g.{name}"]
        allowed = 2e-3 * expected[0] + 1e-6
        # A bias that a norm takes away again has no gradient but rounding, which every processor does in its own way.
        rounding = 1e-5 * self.stored.get(f"g.{name.removesuffix('bias')}weight", expected)[0]
        if name.endswith("bias") and expected[0] < rounding:
            allowed = rounding
        assert (probe(name, gradient) - expected).abs().max() < allowed, name

    def check_answer(self, detector: Detector, rows: Tensor | slice = slice(None)) -> Output:
        """The last layer's answer is the stored one, in these of its rows; gives the output."""
        with torch.no_grad():
            output = self.predict(detector.eval())
        assert (output.logits[-1] - self.stored["logits"])[rows].abs().max() < 2e-4
        assert (output.boxes[-1] - self.stored["boxes"])[rows].abs().max() < 2e-5
        return output


SMALL = [
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "detector.classes=5",
    "detector.width=16",
    "detector.heads=2",
    "encoder.layers=2",
    "encoder.feedforward=24",
    "decoder.layers=3",
    "decoder.feedforward=24",
    "queries.count=8",
]
