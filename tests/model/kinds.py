"""Every kind of detector that a shipped recipe describes, as small as it can be made."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import detrkit
from detrkit.backbones.base import Backbone
from detrkit.layers import shrink_mask
from detrkit.recipe import list_recipes
from detrkit.structures import FeatureMap
from tests.small import SMALL

CLASSES, QUERIES = 5, 12
OWN = ("title", "description", "reproduces", "train", "evaluate", "data", "init_from", "backbone", "detect")
"""Sections that say nothing of the parts that train; backbones have tests of their own."""
FEW = {
    "grid": "queries.grid=[3,4]",
    "count": f"queries.count={QUERIES}",
    "points": "queries.points=4",
    "patterns": "queries.patterns=3",
}


def overrides(values: Mapping[str, Any]) -> list[str]:
    """What makes a recipe of these values small."""
    if values["detector"]["type"] == "faster_rcnn":
        return [*SMALL[:3], "detector.region_width=32", f"detector.classes={CLASSES}"]
    queries = values["queries"]
    few = [line for key, line in FEW.items() if key in queries and (key != "patterns" or "points" in queries)]
    few += [f"blocks.{name}.count=12" for name, block in values["blocks"].items() if block["type"] == "contrastive"]
    return [*SMALL, f"detector.classes={CLASSES}", *few]


def shape(value: Any) -> Any:
    """A recipe's value without its numbers: those that differ in nothing else run through the same code."""
    if isinstance(value, Mapping):
        return {key: shape(value[key]) for key in sorted(value) if key not in OWN}
    if isinstance(value, list | tuple):
        return [shape(one) for one in value]
    return "number" if type(value) in (int, float) else value


@functools.cache
def kinds() -> dict[str, tuple[str, ...]]:
    """The name of one recipe of each kind, and what makes it small; whole systems before variants of them."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for entry in sorted(list_recipes(), key=lambda entry: "/" in entry.name):
        if entry.name.startswith("proxy/"):  # the same systems in other numbers
            continue
        values = detrkit.load_recipe(entry.name).full_values()
        levels = len(values.get("backbone", {}).get("levels", ()))
        found.setdefault(repr((levels, shape(values))), (entry.name, tuple(overrides(values))))
    return dict(found.values())


def recipe(kind: str, *more: str) -> detrkit.Recipe:
    return detrkit.load_recipe(kind, [*kinds()[kind], *more])


def build(made: detrkit.Recipe) -> tuple[nn.Module, nn.Module]:
    """Detector and criterion in float64, with nothing that starts at zero: that would hide what is unused."""
    torch.manual_seed(0)
    detector, criterion = detrkit.build_detector(made).double(), detrkit.build_criterion(made)
    for name, weight in detector.state_dict().items():
        if name.endswith("weight") and not weight.any():
            weight.normal_(std=0.05)  # heads, and the last norms of a ResNet's blocks
    return detector, criterion


class Patches(Backbone):
    """A backbone whose cells see their own pixels alone, so that it does not know where an image ends."""

    def __init__(self, like: Backbone):
        super().__init__()
        self.channels, self.strides = like.channels, like.strides
        levels = zip(self.channels, self.strides, strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(3, c, s, stride=s, bias=False) for c, s in levels).double()

    def forward(self, images, mask):
        maps = [layer(images) for layer in self.layers]
        if mask is None:
            sizes = torch.tensor([images.shape[:1:-1]] * len(images))
        else:
            sizes = torch.stack(((~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)), dim=-1)
        return [
            FeatureMap(m, shrink_mask(mask, m.shape[-2:]), mask, sizes.float() / stride)
            for m, stride in zip(maps, self.strides, strict=True)
        ]


def batch(counts=(3, 1), size=(64, 96)):
    """Whole images of one size, and boxes within them."""
    torch.manual_seed(1)
    images = torch.randn(len(counts), 3, *size, dtype=torch.float64)
    targets = [{"labels": torch.randint(0, CLASSES, (n,)), "boxes": places(n)} for n in counts]
    return images, targets


def places(count: int) -> torch.Tensor:
    """Boxes [count, 4] within the image, some of them at its edges."""
    return torch.cat((torch.rand(count, 2) * 0.7 + 0.15, torch.rand(count, 2) * 0.2 + 0.1), dim=1)
