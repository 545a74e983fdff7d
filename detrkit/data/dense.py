"""More objects an image: mosaic and mixup (DEIM's dense one-to-one)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torchvision.transforms.v2 import functional

from detrkit.data.choosing import ChoosingAugment
from detrkit.data.transforms import Augment, Probability, Sample, limited, make_sample, of_a_pixel, resize
from detrkit.recipe import Given, Slot, as_factory, register

TILES = 4
LARGEST = 1333  # pixels of a side of what is combined; DETR's largest image
ZOOM = (0.5, 1.5)
SHIFT = 0.1
SHARE = (0.45, 0.55)


@register("augment", "dense")
class DenseAugment(ChoosingAugment):
    """Mosaic and mixup before another augmentation, so that an image has more objects (DEIM, section 3.2).

    What follows a mosaic neither zooms out nor crops, as a mosaic does both (`uncropped`).

    Both keep the image's size and take other images of the training split, drawn by the sample's seed, epoch and index.
    Each object still has one query: the more objects, the more queries learn. The first and the last epochs should
    learn from images as they are, which the augmentation "by_epoch" says.

    Args:
        images: the augmentation that follows, and that evaluation resizes by.
        mosaic: probability that the image and three others share its place (`mosaic`).
        mixup: probability that the image is mixed with another, which may be a mosaic as it may itself (`mixup`).
        turn: the most degrees by which a mosaic is turned.
    """

    def __init__(
        self,
        *,
        images: Annotated[Given, Slot("augment")] = "detr",
        mosaic: Probability = 0.5,
        mixup: Probability = 0.5,
        turn: Annotated[float, Field(ge=0, le=180)] = 10.0,
    ):
        super().__init__(as_factory("augment", images)())
        self.mosaic, self.mixup, self.turn = mosaic, mixup, turn

    @classmethod
    def usual_at(cls, table: Mapping[str, Any]) -> tuple[str, ...]:
        return ("images",)

    def chosen(self, epoch: int, rng: np.random.Generator) -> Augment:
        mixed, *mosaics = rng.random(3) < (self.mixup, self.mosaic, self.mosaic)
        tiles = [TILES if each else 1 for each in (mosaics if mixed else mosaics[:1])]
        following = self.usual.chosen(epoch, rng)
        following = following.uncropped() if TILES in tiles else following
        return following if tiles == [1] else _Combined(following, tiles, self.turn)


class _Combined(ChoosingAugment):
    """One image, or two that are laid over each other, of so many images each, before another augmentation."""

    def __init__(self, usual: Augment, tiles: Sequence[int], turn: float):
        super().__init__(usual)
        self.tiles, self.turn = tiles, turn
        self.others = sum(tiles) - 1 + usual.others

    def combine(self, sample: Sample, others: Sequence[Sample], rng: np.random.Generator) -> Sample:
        rest = iter([sample, *others])
        taken = [list(islice(rest, tiles)) for tiles in self.tiles]
        layers = [one[0] if len(one) == 1 else mosaic(one, rng, turn=self.turn) for one in taken]
        made = layers[0] if len(layers) == 1 else mixup(layers[0], layers[1], rng)
        return self.usual.combine(made, list(rest), rng)

    def first_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """The largest that an image can be in what is combined, whatever follows."""
        return limited(height, width, LARGEST)


def mosaic(samples: Sequence[Sample], rng: np.random.Generator, turn: float = 0.0) -> Sample:
    """Four images in a grid of two by two, of the first one's shape and size (up to a limit), black where nothing is.

    Each is made as large as a quarter allows and stands at the top left of it. The grid is turned by up to `turn`
    degrees and zoomed by 0.5 to 1.5 around its middle, and shifted by up to a tenth of the image, whose edges cut
    boxes; those below a pixel are dropped. A turned box is the upright one around it.
    """
    height, width = limited(*samples[0].size, LARGEST)
    grid = Image.new("RGB", (width, height))
    tiles = []
    for place, sample in enumerate(samples):
        left, top = width // 2 * (place % 2), height // 2 * (place // 2)
        tile = resize(sample, _fitting(sample, height / 2, width / 2))
        grid.paste(tile.image, (left, top))
        tiles.append(tile.boxes.as_subclass(torch.Tensor).numpy() + np.array([left, top, left, top], dtype=np.float32))
    whole = make_sample(grid, np.concatenate(tiles), np.concatenate([sample.labels.numpy() for sample in samples]))
    moved = {
        "angle": rng.uniform(-turn, turn),
        "scale": rng.uniform(*ZOOM),
        "translate": list(rng.uniform(-SHIFT, SHIFT, 2) * (width, height)),
        "shear": [0.0],
    }
    boxes = functional.affine(whole.boxes, **moved)
    return of_a_pixel(Sample(functional.affine(whole.image, **moved), boxes, whole.labels))


def mixup(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Two images laid over each other, the first with a share of 0.45 to 0.55, with the objects of both.

    The second is stretched to the first's size, which is that of the image up to a limit.
    """
    sample = resize(sample, limited(*sample.size, LARGEST))
    other = resize(other, (sample.image.height, sample.image.width))
    image = Image.blend(other.image, sample.image, rng.uniform(*SHARE))
    boxes = torch.cat([one.boxes.as_subclass(torch.Tensor) for one in (sample, other)])
    return make_sample(image, boxes.numpy(), torch.cat((sample.labels, other.labels)).numpy())


def _fitting(sample: Sample, height: float, width: float) -> tuple[int, int]:
    """(height, width) of an image as large as a frame allows, at least a pixel."""
    share = min(height / sample.size[0], width / sample.size[1])
    return max(round(sample.size[0] * share), 1), max(round(sample.size[1] * share), 1)
