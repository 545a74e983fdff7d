"""What happens to an image and its boxes between the file and the batch.

A part of slot ``augment`` has ``train(sample, rng)`` and ``evaluate(image)``. All chance comes from the
generator that is handed in, so that a sample depends on nothing but its seed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from detrkit.errors import DataError
from detrkit.recipe import define_slot, register

Probability = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=1, le=100_000)]


@dataclass(frozen=True)
class Sample:
    """An image with its objects: ``boxes`` [T, 4] absolute (x1, y1, x2, y2), ``labels`` [T] int64.

    Before an augmentation that declares its `first_size`, ``image`` may have that size already, while ``boxes`` and
    ``size`` are those of the whole image.
    """

    image: Image.Image
    boxes: BoundingBoxes
    labels: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that the boxes are for."""
        height, width = self.boxes.canvas_size
        return height, width


class Augment(ABC):
    """What is done to images before they are batched; what fills the slot ``augment``."""

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        # What a base class says of its own methods need not be so of those in their place.
        for method, said in (("train", "first_size"), ("evaluate", "evaluation_size")):
            if method in vars(cls) and said not in vars(cls):
                setattr(cls, said, getattr(Augment, said))

    others = 0
    """how many other images of the split ``combine`` is to have; 0: it is not asked"""
    changes: tuple[int, ...] = ()
    """epochs from which on it is another one"""

    def chosen(self, epoch: int, rng: np.random.Generator) -> Augment:
        """The augmentation that a sample of an epoch has: this one, unless the epoch or chance decide."""
        return self

    def uncropped(self) -> Augment:
        """The same without zooming out and crops, where it has any: for images that have had both."""
        return self

    @abstractmethod
    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A sample as training sees it; all chance comes from ``rng``."""

    def combine(self, sample: Sample, others: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """A sample with others, of the same size as before; it goes to ``train`` next."""
        return sample

    def size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """(height, width) of what ``train`` makes of an image, by the same draws; where not said, the image's own."""
        return height, width

    def first_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """(height, width) to which ``train`` resizes an image, by the same draws, before all but a flip.

        Of an augmentation that asks for ``others``: to which ``combine`` resizes each of them, or more.

        A JPEG file may then be decoded at a reduced size. None: ``train`` is to have all pixels. Whoever overrides
        ``train`` says this anew.
        """
        return None

    def evaluation_size(self, height: int, width: int) -> tuple[int, int] | None:
        """(height, width) of what ``evaluate`` makes of an image, if resizing is all that it does; else None.

        Whoever overrides ``evaluate`` says this anew.
        """
        return None

    @abstractmethod
    def evaluate(self, image: Image.Image) -> Image.Image:
        """An image as evaluation and prediction see it."""


define_slot("augment", offers=(), base=Augment)


def make_sample(
    image: Image.Image, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int] | None = None
) -> Sample:
    """A sample of boxes [T, 4] (x1, y1, x2, y2), already inside the image, and labels [T].

    ``size`` (height, width) is what the boxes are for, where it is not the image's own.
    """
    corners = torch.from_numpy(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))
    canvas = size or (image.height, image.width)
    tracked = BoundingBoxes(corners, format=BoundingBoxFormat.XYXY, canvas_size=canvas)
    return Sample(image, tracked, torch.from_numpy(np.asarray(labels, dtype=np.int64)))


def resized(height: int, width: int, short: int, longest: int | None = None) -> tuple[int, int]:
    """(height, width) with the shorter side ``short``, by DETR's rule, which published numbers rest on.

    The longer side is rounded down. Where it would pass ``longest``, the shorter side becomes
    round(longest * shorter / longer) instead, half to even; the longer side follows from that, and can
    therefore end a little above ``longest`` for very slender images. Never less than one pixel.
    """
    low, high = min(height, width), max(height, width)
    if longest is not None and high / low * short > longest:
        short = max(round(longest * low / high), 1)
    if low == short:
        return height, width
    long = int(short * high / low)
    return (short, long) if height <= width else (long, short)


def limited(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) with the same shape and the longer side at most ``longest``; small sizes stay."""
    if max(height, width) <= longest:
        return height, width
    share = longest / max(height, width)
    return max(round(height * share), 1), max(round(width * share), 1)


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """To ``size`` (height, width), bilinear with antialiasing; boxes go along."""
    image = _resize_image(sample.image, size)
    if size == sample.size:
        return replace(sample, image=image)
    return Sample(image, functional.resize(sample.boxes, list(size)), sample.labels)


def _resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if size == (image.height, image.width) else functional.resize(image, list(size))


def flip(sample: Sample) -> Sample:
    """Left and right exchanged."""
    return Sample(functional.horizontal_flip(sample.image), functional.horizontal_flip(sample.boxes), sample.labels)


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """A part of the image; boxes are cut at its edges, and those left without area are dropped."""
    return _cropped(functional.crop(sample.image, top, left, height, width), sample, (top, left, height, width))


def crop_resized(sample: Sample, size: tuple[int, int], top: int, left: int, height: int, width: int) -> Sample:
    """`crop` of what `resize` to ``size`` gives, without the pixels outside: those of a slender image are many."""
    image = sample.image
    if (image.height, image.width) == size:
        return crop(resize(sample, size), top, left, height, width)
    down, right = image.height / size[0], image.width / size[1]
    low = left * right, top * down
    high = min((left + width) * right, image.width), min((top + height) * down, image.height)
    part = image.resize((width, height), Image.Resampling.BILINEAR, box=(*low, *high))
    boxes = sample.boxes if size == sample.size else functional.resize(sample.boxes, list(size))
    return _cropped(part, replace(sample, boxes=boxes), (top, left, height, width))


def _cropped(image: Image.Image, sample: Sample, part: tuple[int, int, int, int]) -> Sample:
    """An image, which is that part (top, left, height, width) of a sample's, with the sample's objects."""
    boxes = functional.crop(sample.boxes, *part)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept = BoundingBoxes(boxes[keep], format=BoundingBoxFormat.XYXY, canvas_size=part[2:])
    return Sample(image, kept, sample.labels[keep])


def of_a_pixel(sample: Sample) -> Sample:
    """Without objects whose boxes are narrower or lower than a pixel."""
    corners = sample.boxes.as_subclass(torch.Tensor)
    keep = (corners[:, 2:] - corners[:, :2] >= 1).all(1)
    kept = BoundingBoxes(corners[keep], format=BoundingBoxFormat.XYXY, canvas_size=sample.size)
    return Sample(sample.image, kept, sample.labels[keep])


@dataclass(frozen=True)
class _Drawn:
    """What chance chose for an image. crop: top, left, height and width, in what is `before_crop` high and wide."""

    flip: bool
    before_crop: tuple[int, int]
    crop: tuple[int, int, int, int] | None
    size: tuple[int, int]


@register("augment", "detr")
class DetrAugment(Augment):
    """DETR's augmentation: flip, then resize to one of several scales, half of the time after a crop (section 4).

    Sizes are pixels. The source is facebookresearch/detr, datasets/coco.py.

    Args:
        scales: shorter sides to choose from, with the longer side at most max_size.
        max_size: longest side in training.
        flip: probability of exchanging left and right.
        crop: probability of first resizing the shorter side to one of crop_scales (no limit on the longer), and
            cropping to a height and a width each uniform in crop_min..crop_max (or the image's side, where that is
            less).
        crop_scales: shorter sides before a crop.
        crop_min: least height and width of a crop.
        crop_max: most.
        eval_size: shorter side in evaluation.
        eval_max_size: longest side in evaluation.
    """

    def __init__(
        self,
        *,
        scales: Annotated[tuple[Pixels, ...], Field(min_length=1)] = tuple(range(480, 801, 32)),
        max_size: Pixels = 1333,
        flip: Probability = 0.5,
        crop: Probability = 0.5,
        crop_scales: Annotated[tuple[Pixels, ...], Field(min_length=1)] = (400, 500, 600),
        crop_min: Pixels = 384,
        crop_max: Pixels = 600,
        eval_size: Pixels = 800,
        eval_max_size: Pixels = 1333,
    ):
        if crop_min > crop_max:
            raise DataError(f"crop_min is {crop_min}, more than crop_max, {crop_max}")
        self.scales = scales
        self.max_size = max_size
        self.flip = flip
        self.crop = crop
        self.crop_scales = crop_scales
        self.crop_min = crop_min
        self.crop_max = crop_max
        self.eval_size = eval_size
        self.eval_max_size = eval_max_size

    def uncropped(self) -> DetrAugment:
        same = copy.copy(self)
        same.crop = 0.0
        return same

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        drawn = self._draw(*sample.size, rng)
        if drawn.flip:
            sample = flip(sample)
        if drawn.crop is not None:
            sample = crop_resized(sample, drawn.before_crop, *drawn.crop)
        return resize(sample, drawn.size)

    def size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return self._draw(height, width, rng).size

    def first_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        drawn = self._draw(height, width, rng)
        return drawn.size if drawn.crop is None else drawn.before_crop

    def evaluation_size(self, height: int, width: int) -> tuple[int, int]:
        return resized(height, width, self.eval_size, self.eval_max_size)

    def evaluate(self, image: Image.Image) -> Image.Image:
        return _resize_image(image, self.evaluation_size(image.height, image.width))

    def _draw(self, height: int, width: int, rng: np.random.Generator) -> _Drawn:
        flipped = rng.random() < self.flip
        before, part = (height, width), None
        if rng.random() < self.crop:
            before = resized(height, width, int(rng.choice(self.crop_scales)))
            height, width = (
                int(rng.integers(min(self.crop_min, side), min(self.crop_max, side) + 1)) for side in before
            )
            top, left = (int(rng.integers(side - part + 1)) for side, part in zip(before, (height, width), strict=True))
            part = (top, left, height, width)
        size = resized(height, width, int(rng.choice(self.scales)), self.max_size)
        return _Drawn(flip=flipped, before_crop=before, crop=part, size=size)


@register("augment", "none")
class NoAugment(Augment):
    """Images as they are, up to a limit.

    Args:
        max_size: pixels; an image with a longer side is made smaller, in training and in evaluation alike, so that a
            photograph of many megapixels takes neither minutes nor all memory. 1333 is DETR's largest side.
    """

    def __init__(self, *, max_size: Pixels = 1333):
        self.max_size = max_size

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return resize(sample, self.size(*sample.size, rng))

    def size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return limited(height, width, self.max_size)

    def first_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return self.size(height, width, rng)

    def evaluation_size(self, height: int, width: int) -> tuple[int, int]:
        return limited(height, width, self.max_size)

    def evaluate(self, image: Image.Image) -> Image.Image:
        return _resize_image(image, self.evaluation_size(image.height, image.width))


@register("augment", "flip")
class FlipAugment(NoAugment):
    """Left and right exchanged by chance; sizes stay as they are, up to a limit.

    Args:
        flip: probability of exchanging left and right.
        max_size: as for `none`.
    """

    def __init__(self, *, flip: Probability = 0.5, max_size: Pixels = 1333):
        super().__init__(max_size=max_size)
        self.flip = flip

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = super().train(sample, rng)
        return flip(sample) if rng.random() < self.flip else sample

    def first_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return self.size(height, width, rng)
