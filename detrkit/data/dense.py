"""More objects an image: mosaic and mixup, in some epochs of a training (DEIM's dense one-to-one)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from detrkit.data.transforms import Augment, Probability, Sample, make_sample, resize
from detrkit.errors import DataError
from detrkit.recipe import Given, Slot, as_factory, register

Epoch = Annotated[int, Field(ge=0, le=1_000_000)]
MOSAIC, MIXUP = 3, 1  # other images that each takes
ZOOM = (0.5, 1.5)
SHIFT = 0.1
SHARE = (0.45, 0.55)


@register("augment", "dense")
class DenseAugment(Augment):
    """Mosaic or mixup before another augmentation, so that an image has more objects (DEIM, section 3.2).

    Both keep the image's size and take other images of the training split, drawn by the sample's seed, epoch and index.
    Each object still has one query: the more objects, the more queries learn. Which epochs have it is said here, from 0
    on; a resumed run goes on as if it had not stopped.

    Args:
        images: the augmentation that follows, and that evaluation resizes by.
        mosaic: probability that the image and three others share its place (`mosaic`).
        mixup: probability that an image that is no mosaic is mixed with another (`mixup`).
        from_epoch: the first epoch that has them.
        until_epoch: the first epoch that no longer has them; the last epochs should learn from images as they are.
    """

    def __init__(
        self,
        *,
        images: Annotated[Given, Slot("augment")] = "detr",
        mosaic: Probability = 0.5,
        mixup: Probability = 0.5,
        from_epoch: Epoch = 0,
        until_epoch: Epoch,
    ):
        if until_epoch <= from_epoch:
            raise DataError(
                f"augment: until_epoch is {until_epoch}, so that no epoch has mosaic or mixup: it has to be more than "
                f"from_epoch, {from_epoch}"
            )
        self.images: Augment = as_factory("augment", images)()
        self.mosaic, self.mixup = mosaic, mixup
        self.epochs = range(from_epoch, until_epoch)

    def others(self, epoch: int, rng: np.random.Generator) -> int:
        draws = rng.random(2)
        if epoch not in self.epochs:
            return 0
        if draws[0] < self.mosaic:
            return MOSAIC
        return MIXUP if draws[1] < self.mixup else 0

    def combine(self, sample: Sample, others: Sequence[Sample], rng: np.random.Generator) -> Sample:
        return mosaic([sample, *others], rng) if len(others) == MOSAIC else mixup(sample, others[0], rng)

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.images.train(sample, rng)

    def size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return self.images.size(height, width, rng)

    def evaluate(self, image: Image.Image) -> Image.Image:
        return self.images.evaluate(image)


def mosaic(samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """Four images in a grid of two by two, of the size of the first, black where nothing is.

    Each is made as large as a quarter allows and stands at the top left of it. The grid is zoomed by 0.5 to 1.5 around
    its middle and shifted by up to a tenth of the image, whose edges cut boxes; those below a pixel are dropped. (The
    official code also turns it by up to 10 degrees.)
    """
    height, width = samples[0].image.height, samples[0].image.width
    zoom = rng.uniform(*ZOOM)
    middle = np.array([width, height]) / 2
    start = rng.uniform(-SHIFT, SHIFT, 2) * (width, height) + middle * (1 - zoom)  # of the grid, (x, y)
    canvas = Image.new("RGB", (width, height))
    boxes, labels = [], []
    for place, sample in enumerate(samples):
        left, top = (round(v) for v in start + middle * zoom * (place % 2, place // 2))
        tile = resize(sample, _fitting(sample, height / 2 * zoom, width / 2 * zoom))
        canvas.paste(tile.image, (left, top))
        corners = tile.boxes.as_subclass(torch.Tensor).numpy() + np.array([left, top, left, top], dtype=np.float32)
        corners = corners.clip(0, np.array([width, height, width, height], dtype=np.float32))
        keep = (corners[:, 2:] - corners[:, :2] >= 1).all(1)
        boxes.append(corners[keep])
        labels.append(sample.labels.numpy()[keep])
    return make_sample(canvas, np.concatenate(boxes), np.concatenate(labels))


def mixup(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Two images laid over each other, the first with a share of 0.45 to 0.55, with the objects of both.

    The second is stretched to the first's size.
    """
    other = resize(other, (sample.image.height, sample.image.width))
    image = Image.blend(other.image, sample.image, rng.uniform(*SHARE))
    boxes = torch.cat([one.boxes.as_subclass(torch.Tensor) for one in (sample, other)])
    return make_sample(image, boxes.numpy(), torch.cat((sample.labels, other.labels)).numpy())


def _fitting(sample: Sample, height: float, width: float) -> tuple[int, int]:
    """(height, width) of an image as large as a frame allows, at least a pixel."""
    share = min(height / sample.image.height, width / sample.image.width)
    return max(round(sample.image.height * share), 1), max(round(sample.image.width * share), 1)
