"""Augmentations that have another one do the work."""

from __future__ import annotations

import numpy as np
from PIL import Image

from detrkit.data.transforms import Augment, Sample


class ChoosingAugment(Augment):
    """An augmentation that chooses one for each sample, and without an epoch and in evaluation is its usual one.

    Args:
        usual: the augmentation that it is where nothing is chosen.
    """

    def __init__(self, usual: Augment):
        self.usual = usual

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
