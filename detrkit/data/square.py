"""Images as squares, whatever their shape, with RT-DETR's augmentation."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from detrkit.data.transforms import Augment, Pixels, Probability, Sample, flip, resize
from detrkit.recipe import register

SIDES = (480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800)


@register("augment", "square")
class SquareAugment(Augment):
    """Colours, zoom out, crop, flip, then a square of one of several sizes (RT-DETR, official code).

    The source is lyuwenyu/RT-DETR, configs/rtdetr/include. There a whole batch has one size; here each image draws its
    own, and smaller ones are padded, which the detector knows.

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
        self.scales, self.crop, self.flip, self.eval_size = scales, crop, flip, eval_size
        self.colours, self.zoom_out = v2.RandomPhotometricDistort(p=distort), v2.RandomZoomOut(fill=0, p=zoom_out)
        self.cut, self.sound = v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes(labels_getter=_labels)

    def uncropped(self) -> SquareAugment:
        same = copy.copy(self)
        same.crop, same.zoom_out = 0.0, v2.RandomZoomOut(fill=0, p=0.0)
        return same

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        size = self.size(sample.image.height, sample.image.width, rng)
        cropped, flipped = rng.random() < self.crop, rng.random() < self.flip
        with torch.random.fork_rng(devices=[]):  # torchvision's chance, by this generator
            torch.default_generator.manual_seed(int(rng.integers(2**62)))  # not the devices', which stay as they are
            one = self.zoom_out(self.colours(sample.image), sample.boxes, sample.labels)
            # torchvision's crops divide by sides of 0.3 and more of the image's, rounded down.
            if cropped and len(sample.labels) and int(0.3 * min(one[0].size)) > 0:
                one = self.sound(self.cut(*one))
        sample = Sample(*one)
        return resize(flip(sample) if flipped else sample, size)

    def size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        side = int(rng.choice(self.scales))
        return side, side

    def evaluate(self, image: Image.Image) -> Image.Image:
        return functional.resize(image, [self.eval_size, self.eval_size])


def _labels(sample: Any) -> torch.Tensor:
    return sample[2]
