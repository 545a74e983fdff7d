"""Augmentations that have another one do the work."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from detrkit.data.transforms import Augment, Sample
from detrkit.recipe.registry import parts


class ChoosingAugment(Augment):
    """An augmentation that chooses one for each sample, and without an epoch and in evaluation is its usual one.

    The dataset asks it for `chosen` and trains by that: what a subclass does to a sample is done by what it chooses.

    Args:
        usual: the augmentation that it is where nothing is chosen.
    """

    def __init__(self, usual: Augment):
        self.usual = usual

    @classmethod
    def usual_at(cls, table: Mapping[str, Any]) -> tuple[str, ...]:
        """The keys by which the usual one is found in a table of options."""
        raise NotImplementedError

    def uncropped(self) -> ChoosingAugment:
        same = copy.copy(self)
        same.usual = self.usual.uncropped()
        return same

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.usual.train(sample, rng)

    def size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return self.usual.size(height, width, rng)

    def first_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int] | None:
        return self.usual.first_size(height, width, rng)

    def evaluate(self, image: Image.Image) -> Image.Image:
        return self.usual.evaluate(image)

    def evaluation_size(self, height: int, width: int) -> tuple[int, int] | None:
        return self.usual.evaluation_size(height, width)


def evaluated_at(table: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys by which that is found in a table of data.augment whose `evaluate` is done; none where it is itself."""
    path: tuple[str, ...] = ()
    while hasattr(kind := parts("augment")[table["type"]], "usual_at"):
        keys = kind.usual_at(table)
        path += keys
        for key in keys:
            table = table[key]
    return path
