"""Images and targets of one step, padded to one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from detrkit.layers import sent
from detrkit.pixels import MEAN, STD


@dataclass(frozen=True)
class Example:
    """One image as the network sees it, not yet normalised.

    ``image`` [3, H, W] uint8; ``boxes`` [T, 4] (cx, cy, w, h) in [0, 1]; ``labels`` [T] int64; ``size`` the
    original (height, width), to which detections are scaled back. ``skipped`` says which file could not be read,
    where this stands in its place.
    """

    image: torch.Tensor
    boxes: torch.Tensor
    labels: torch.Tensor
    image_id: int
    size: tuple[int, int]
    skipped: str = ""

    @classmethod
    def without_truth(cls, image: Image.Image, image_id: int, size: tuple[int, int], skipped: str = "") -> Example:
        """An image that objects are only to be found on."""
        return cls(to_pixels(image), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), image_id, size, skipped)


@dataclass(frozen=True)
class Batch:
    """B images of one step.

    images [B, 3, H, W] float32, normalised, zero to the right of and below each image; mask [B, H, W] bool,
    True where padded, None where nothing is; targets: per image labels [T] int64 and boxes [T, 4]
    (cx, cy, w, h) in [0, 1] of the unpadded image; sizes [B, 2] int64 the original (height, width); skipped: what
    could not be read, and has other images in its place.
    """

    images: torch.Tensor
    mask: torch.Tensor | None
    targets: list[dict[str, torch.Tensor]]
    image_ids: list[int]
    sizes: torch.Tensor
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The same batch on another device, by copies that do not block unless they are to."""
        place = torch.device(device)
        return self._map(lambda tensor: sent(tensor, place) if non_blocking else tensor.to(place))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        labels, boxes = (change(part) for part in _joined(self.targets))
        return replace(
            self,
            images=change(self.images),
            mask=None if self.mask is None else change(self.mask),
            targets=_divided(labels, boxes, self._counts()),
            sizes=change(self.sizes),
        )

    def _counts(self) -> list[int]:
        return [len(target["labels"]) for target in self.targets]

    def __reduce__(self):
        # Each tensor that goes from a worker to the trainer is a shared file: few tensors, however many images.
        rest = (self.image_ids, self.sizes, self.skipped)
        return _restored, (self.images, self.mask, *_joined(self.targets), self._counts(), *rest)


def _joined(targets: Sequence[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and boxes of all images in a row."""
    return torch.cat([target["labels"] for target in targets]), torch.cat([target["boxes"] for target in targets])


def _divided(labels: torch.Tensor, boxes: torch.Tensor, counts: list[int]) -> list[dict[str, torch.Tensor]]:
    """The targets of each image, as views."""
    pairs = zip(labels.split(counts), boxes.split(counts), strict=True)
    return [{"labels": label, "boxes": box} for label, box in pairs]


def _restored(
    images: torch.Tensor,
    mask: torch.Tensor | None,
    labels: torch.Tensor,
    boxes: torch.Tensor,
    counts: list[int],
    image_ids: list[int],
    sizes: torch.Tensor,
    skipped: tuple[str, ...],
) -> Batch:
    return Batch(images, mask, _divided(labels, boxes, counts), image_ids, sizes, skipped)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB image as [3, H, W] uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """[3, H, W] uint8 to float32 with ImageNet's mean and deviation."""
    made = torch.empty(pixels.shape)
    write_normalised(made, pixels)
    return made


def write_normalised(place: torch.Tensor, pixels: torch.Tensor) -> None:
    """What `normalise` makes of pixels, into its place in a batch: without copies on the way it takes half the time."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    place.copy_(pixels).div_(255).sub_(mean).div_(std)


def stack(
    images: Sequence[torch.Tensor],
    write: Callable[[torch.Tensor, torch.Tensor], None],
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images [3, h, w], each as `write` writes it into its place, in the form of a `Batch` of that type, and mask."""
    shapes = [tuple(image.shape[-2:]) for image in images]
    height, width = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    padded = any(shape != (height, width) for shape in shapes)
    device = images[0].device
    stacked = torch.zeros(len(images), 3, height, width, dtype=dtype, device=device)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=device) if padded else None
    for index, (image, (h, w)) in enumerate(zip(images, shapes, strict=True)):
        write(stacked[index, :, :h, :w], image)
        if mask is not None:
            mask[index, :h, :w] = False
    return stacked, mask


def collate(examples: Sequence[Example]) -> Batch:
    """Put images at the top left of the largest height and width among them."""
    images, mask = stack([example.image for example in examples], write_normalised)
    return Batch(
        images=images,
        mask=mask,
        targets=[{"labels": example.labels, "boxes": example.boxes} for example in examples],
        image_ids=[example.image_id for example in examples],
        sizes=torch.tensor([example.size for example in examples], dtype=torch.int64),
        skipped=tuple(example.skipped for example in examples if example.skipped),
    )
