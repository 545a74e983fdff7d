"""Images as squares, whatever their shape, with RT-DETR's augmentation."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from detrkit.data.transforms import Augment, Pixels, Probability, Sample, flip, of_a_pixel, resize
from detrkit.recipe import register

SIDES = (480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800)
ZOOM = (1.0, 4.0)
LEAST_CROP = 0.3


@dataclass(frozen=True)
class _Drawn:
    """What chance chose for an image. zoom: sides of the black image to its own; place: where in it, in [0, 1]."""

    side: int
    crop: bool
    flip: bool
    zoom: float
    place: tuple[float, float]
    seed: int

    def first_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of as many pixels as can be seen of an image in the end, and of no more than it has."""
        if not self.crop:  # shapes do not matter then
            shown = max(round(self.side / self.zoom), 1)
            return min(height, shown), min(width, shown)
        share = min(self.side / LEAST_CROP / self.zoom / min(height, width), 1)
        return max(round(height * share), 1), max(round(width * share), 1)


class Colours(v2.RandomPhotometricDistort):
    """The same on Pillow's images, whose channels are exchanged as they are: through a tensor it took twenty times as
    long."""

    def transform(self, inpt: Image.Image, params: dict[str, Any]) -> Image.Image:
        order = params["channel_permutation"]
        changed = super().transform(inpt, params | {"channel_permutation": None})
        return changed if order is None else Image.merge("RGB", [changed.getchannel(int(one)) for one in order])


@register("augment", "square")
class SquareAugment(Augment):
    """Colours, zoom out, crop, flip, then a square of one of several sizes (RT-DETR, official code).

    The source is lyuwenyu/RT-DETR, configs/rtdetr/include. There a whole batch has one size; here each image draws its
    own, and smaller ones are padded, which the detector knows. An image of more pixels than can be seen in the square,
    were it cropped to the least, is made smaller first. Objects below a pixel in the square are dropped.

    Args:
        scales: sides to choose from, in pixels.
        distort: probability of changing brightness, contrast, saturation, hue and the order of channels.
        zoom_out: probability of putting the image into a black one of up to four times its sides.
        crop: probability of trying crops of 0.3 to 1 of the sides that keep an overlap with an object.
        flip: probability of exchanging left and right.
        eval_size: side in evaluation.
    """

    def __init__(
        self,
        *,
        scales: Annotated[tuple[Pixels, ...], Field(min_length=1)] = SIDES,
        distort: Probability = 0.5,
        zoom_out: Probability = 0.5,
        crop: Probability = 0.8,
        flip: Probability = 0.5,
        eval_size: Pixels = 640,
    ):
        self.scales, self.zoom_out, self.crop, self.flip, self.eval_size = scales, zoom_out, crop, flip, eval_size
        self.colours = Colours(p=distort)
        self.cut = v2.RandomIoUCrop(min_scale=LEAST_CROP)

    def uncropped(self) -> SquareAugment:
        same = copy.copy(self)
        same.crop = same.zoom_out = 0.0
        return same

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        drawn = self._draw(rng)
        sample = resize(sample, drawn.first_size(*sample.size))
        with torch.random.fork_rng(devices=[]):  # torchvision's chance, by this generator
            torch.default_generator.manual_seed(drawn.seed)  # not the devices', which stay as they are
            sample = _zoomed_out(replace(sample, image=self.colours(sample.image)), drawn)
            # torchvision's crops divide by sides of 0.3 and more of the image's, rounded down.
            if drawn.crop and len(sample.labels) and int(LEAST_CROP * min(sample.size)) > 0:
                # Boxes that a crop loses come back without area.
                sample = Sample(*self.cut(sample.image, sample.boxes, sample.labels))
        return of_a_pixel(resize(flip(sample) if drawn.flip else sample, (drawn.side, drawn.side)))

    def size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        side = self._draw(rng).side
        return side, side

    def first_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        return self._draw(rng).first_size(height, width)

    def evaluation_size(self, height: int, width: int) -> tuple[int, int]:
        return self.eval_size, self.eval_size

    def evaluate(self, image: Image.Image) -> Image.Image:
        return functional.resize(image, [self.eval_size, self.eval_size])

    def _draw(self, rng: np.random.Generator) -> _Drawn:
        side = int(rng.choice(self.scales))
        cropped, flipped, zoomed = rng.random(3) < (self.crop, self.flip, self.zoom_out)
        zoom = rng.uniform(*ZOOM) if zoomed else 1.0
        down, right = rng.random(2).tolist()
        return _Drawn(side, bool(cropped), bool(flipped), zoom, (down, right), seed=int(rng.integers(2**62)))


def _zoomed_out(sample: Sample, drawn: _Drawn) -> Sample:
    """In a black image, larger by the zoom."""
    (height, width), zoom = sample.size, drawn.zoom
    more = int(height * zoom) - height, int(width * zoom) - width
    top, left = (int(side * place) for side, place in zip(more, drawn.place, strict=True))
    around = [left, top, more[1] - left, more[0] - top]
    if not any(around):
        return sample
    return Sample(functional.pad(sample.image, around), functional.pad(sample.boxes, around), sample.labels)
