"""Official checkpoints in our names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detrkit.detector import build_detector
from detrkit.errors import CheckpointError
from detrkit.reading import not_finite, unlike
from detrkit.recipe import Recipe
from detrkit.zoo.recognising import families_of, recognise


@dataclass
class Conversion:
    """What became of every tensor of an official checkpoint."""

    state: dict[str, Tensor] = field(default_factory=dict)
    """our name -> tensor: what can be loaded"""
    names: dict[str, str] = field(default_factory=dict)
    """official name -> our name, for each tensor of `state`"""
    repeated: dict[str, str] = field(default_factory=dict)
    """official name -> official name of the same tensor, left out"""
    missing: list[str] = field(default_factory=list)
    """our names that the checkpoint has nothing for"""
    unexpected: list[str] = field(default_factory=list)
    """official names that the recipe's detector has no place for"""
    mismatched: list[str] = field(default_factory=list)
    """sentences on tensors of another shape or kind, that are not finite, or on repeats that differ"""
    losses: tuple[str, ...] = ()
    """official names of a training's losses, left out"""
    counters: list[str] = field(default_factory=list)
    """official names of batches that norms have counted, left out"""
    prefix: str = ""
    """what stood before every official name, and was taken off"""

    @property
    def complete(self) -> bool:
        """Whether everything found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def require_complete(self, recipe: Recipe) -> None:
        """Raise CheckpointError with all that is not, unless everything found its place in the recipe's detector."""
        if not self.state and set(self.missing) & set(self.unexpected):
            raise CheckpointError(
                "the checkpoint has detrkit's own names, so there is nothing to convert: give it by --weights to a "
                "verb that uses a detector, or by train.init_from to a training"
            )
        if not self.complete:
            hint = "" if self.state else " (weights of a timm model alone go into a recipe by backbone.weights)"
            raise CheckpointError(f"the checkpoint does not fit {recipe.name}: {self.summary(hint)}")

    def summary(self, hint: str = "") -> str:
        """What matched and what did not, in a few lines; `hint` follows what matched."""
        lines = [f"{len(self.state)} tensors matched, {len(self.repeated)} repeats left out{hint}"]
        if self.prefix:
            lines.append(f'"{self.prefix}" before every name was taken off')
        for title, names in (
            ("missing in the checkpoint", self.missing),
            ("no place in the recipe's detector", self.unexpected),
            ("of another shape, kind or value", self.mismatched),
        ):
            if names:
                shown = [f"  {name}" for name in names[:20]]
                rest = [f"  ... and {len(names) - 20} more"] if len(names) > 20 else []
                lines += [f"{len(names)} {title}:", *shown, *rest]
        return "\n".join(lines)


def match(official: Mapping[str, Tensor], recipe: Recipe) -> Conversion:
    """Give every tensor of an official state dict its place in the recipe's detector, and say what did not fit."""
    known = recognise(official, families_of(recipe))
    family, official = known.family, known.state
    with torch.device("meta"):
        expected = build_detector(recipe, pretrained=False).state_dict()
    result = Conversion(prefix=known.prefix, losses=known.losses)
    placed: set[str] = set()
    for name, tensor in official.items():
        ours = family.ours(name, expected)
        if ours is not None and ours in expected:
            placed.add(ours)
            if tensor.shape != expected[ours].shape:
                shapes = f"{list(tensor.shape)} in the checkpoint, {list(expected[ours].shape)} in the recipe"
                result.mismatched.append(f"{name} -> {ours}: {shapes}")
            elif other := unlike(tensor, expected[ours]):
                result.mismatched.append(f"{name} -> {ours}: {other}")
            elif not_finite({name: tensor}):
                result.mismatched.append(f"{name} -> {ours}: holds numbers that are not finite")
            else:
                result.state[ours], result.names[name] = tensor, ours
            continue
        first = family.first_name(name)
        while first is not None and first in official and family.ours(first, expected) not in expected:
            first = family.first_name(first)
        if first is not None and first in official:
            if torch.equal(official[first], tensor):
                if name in known.given:
                    result.repeated[name] = first
            else:
                result.mismatched.append(f"{name} differs from {first}, which the recipe shares between layers")
        elif name.endswith("num_batches_tracked"):  # a counter that frozen norms do not have
            result.counters.append(name)
        else:
            result.unexpected.append(name)
    result.missing = [name for name in expected if name not in placed]
    return result


def convert(official: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """An official state dict in our names, ready for `build_detector(recipe).load_state_dict`.

    Warns where the recipe computes something else than the checkpoint's own code; `fit` gives one that does not.

    Raises:
        CheckpointError: something is missing, has no place, or has another shape; the message lists all of it.
    """
    for setting in recognise(official, families_of(recipe)).family.settings(None):
        if not setting.assumed and recipe.get(setting.key, None) != setting.value:
            told = f"{recipe.name}: {setting.key} should be {setting.value}: {setting.why}; detrkit.zoo.fit sets it"
            warnings.warn(told, stacklevel=2)
    result = match(official, recipe)
    result.require_complete(recipe)
    return result.state
