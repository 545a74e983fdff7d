"""torchvision's form of a detection model, both ways.

There a model takes a list of images of their own sizes, in [0, 1], and truths as corners in pixels, with labels from 1
on (0 is the background); it gives a dict of losses in training, and otherwise a list of detections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchvision.ops import clip_boxes_to_image

from detrkit.backbones.timm_backbone import image_sizes
from detrkit.boxes import center_to_corners, corners_to_center
from detrkit.data.batch import stack
from detrkit.errors import UserError
from detrkit.layers import at_least_float32, constant
from detrkit.losses.base import BaseCriterion
from detrkit.losses.truths import PIXELS_FORM, check_form, check_truths
from detrkit.pixels import MEAN, STD
from detrkit.structures import Sizes, Target
from detrkit.system import BaseDetector


class AsTorchvision(nn.Module):
    """A detector of detrkit's that is called as torchvision's detection models are.

    Images are not resized. Truths whose boxes have no area are refused, as torchvision's models do.

    Args:
        detector: what `detrkit.build_detector` makes, say.
        criterion: makes the losses; their sum is its total.
        first_label: of the K classes: 1 as in torchvision, or 0 for a loop that counts from there.
    """

    def __init__(self, detector: BaseDetector, criterion: BaseCriterion, *, first_label: int = 1):
        super().__init__()
        self.detector: BaseDetector = detector
        self.criterion, self.first_label = criterion, first_label

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, otherwise detections.

        Args:
            images: each [3, h, w] in [0, 1], or [1, h, w] where it is grey; a batch of them in one tensor will do.
            targets: for each image `labels` [T] and `boxes` [T, 4] as (x0, y0, x1, y1) in pixels.

        Returns:
            losses by name, which sum to the total; or for each image, best first, `scores` [k], `labels` [k] and
            `boxes` [k, 4] in pixels, within the image, and what else the detector gives (see `Detector.detect`).

        Raises:
            UserError: images of another form; no targets in training mode, or some of another form or out of range.
        """
        if not len(images):
            raise UserError("there is no image; name one at least")
        for image in images:
            _check_image(image)
        own = (one.dtype for one in self.detector.parameters() if one.is_floating_point())
        stacked, mask = stack(images, _write_normalised, next(own, torch.float32))
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        if not self.training:
            found = self.detector.detect(stacked, mask, sizes)
            return [self._told(one, size) for one, size in zip(found, sizes, strict=True)]
        if targets is None:
            raise UserError("in training mode the losses need the targets: model(images, targets)")
        if len(targets) != len(images):
            raise UserError(f"{len(targets)} targets for {len(images)} images; each image has one, empty or not")
        truths = [self._truth(f"targets[{i}]", *one) for i, one in enumerate(zip(targets, sizes, strict=True))]
        return self.criterion.weighted(self.detector(stacked, mask, truths), truths)

    def _told(self, found: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        boxes = clip_boxes_to_image(found["boxes"], size)
        return {**found, "boxes": boxes, "labels": found["labels"] + self.first_label}

    def _truth(self, where: str, target: Target, size: tuple[int, int]) -> Target:
        """A target of an image of `size` (height, width) as a truth of the detector's; `where` names it."""
        check_form(target, where, PIXELS_FORM)
        corners, labels = target["boxes"].reshape(-1, 4), target["labels"]
        if (corners[:, 2:] <= corners[:, :2]).any():
            raise UserError(f"{where} has a box that has no area; boxes are (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        if labels.device.type == "cpu" and (labels < self.first_label).any():
            raise UserError(
                f"{where} has the label {int(labels.min())}; the first class has label {self.first_label} "
                "(AsTorchvision(..., first_label=0) counts from 0)"
            )
        height, width = size
        shares = corners / constant([width, height, width, height], corners)
        if shares.device.type == "cpu" and not ((shares >= -1) & (shares <= 2)).all():  # nan, too
            raise UserError(
                f"{where} has a box far outside its image of {width} x {height} pixels; a target holds {PIXELS_FORM}"
            )
        return {"labels": labels - self.first_label, "boxes": corners_to_center(shares)}


class TorchvisionDetector(nn.Module):
    """A detection model of torchvision's form that detrkit trains and evaluates; its criterion is `OwnLosses`.

    Images are given to it as it expects them: without their padding, and with ImageNet's mean and deviation undone,
    since its own transform normalises and resizes. Under autocast its `backbone` alone is in half precision: boxes take
    the type of what comes out of the rest, and in bfloat16 lie on every fourth pixel from 512 on.

    Args:
        model: `torchvision.models.detection.fasterrcnn_resnet50_fpn(num_classes=K + 1)`, say.
        first_label: that the model has for label 0: 1 where 0 is its background.
    """

    def __init__(self, model: nn.Module, *, first_label: int = 1):
        super().__init__()
        self.model, self.first_label = model, first_label

    def forward(
        self, images: Tensor, mask: Tensor | None = None, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The model's losses in training mode, otherwise its detections in pixels of the input.

        Args:
            images: [B, 3, H, W], normalised, padded at the right and bottom.
            mask: [B, H, W] bool, True where padded; None when nothing is padded.
            targets: the truth, which training needs.
        """
        sizes = image_sizes(images, mask)
        shapes = [(int(height), int(width)) for width, height in sizes.tolist()]
        plain = images * _column(STD, images) + _column(MEAN, images)
        alone = [image[:, :height, :width] for image, (height, width) in zip(plain, shapes, strict=True)]
        with _boxes_in_float32(self.model, images.device.type):
            if not (self.training and targets is not None):
                return self.model(alone)
            check_truths(targets, images=len(images), classes=None)
            return self.model(alone, [absolute(t, s, self.first_label) for t, s in zip(targets, sizes, strict=True)])

    @torch.no_grad()
    def detect(self, images: Tensor, mask: Tensor | None, sizes: Sizes) -> list[dict[str, Tensor]]:
        """Detections of a batch in pixels of the original images; see `Detector.detect`."""
        scales = torch.as_tensor(sizes).to(images.device).flip(-1) / image_sizes(images, mask)
        return [
            {**one, "boxes": one["boxes"] * scale.repeat(2), "labels": one["labels"] - self.first_label}
            for one, scale in zip(self(images, mask), scales, strict=True)
        ]


@contextmanager
def _boxes_in_float32(model: nn.Module, device: str) -> Iterator[None]:
    """Within it autocast holds in the model's `backbone` alone, whose maps come out in float32."""
    if not torch.is_autocast_enabled(device):
        yield
        return

    def enter(*_: Any) -> None:
        torch.set_autocast_enabled(device, True)

    def leave(_: nn.Module, __: Any, maps: Any) -> Any:
        torch.set_autocast_enabled(device, False)
        return tree_map_only(Tensor, at_least_float32, maps)

    backbone, hooks = getattr(model, "backbone", None), []
    if isinstance(backbone, nn.Module):
        hooks = [backbone.register_forward_pre_hook(enter), backbone.register_forward_hook(leave)]
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def absolute(target: Target, size: Tensor, first_label: int = 1) -> Target:
    """A truth in torchvision's form: corners in pixels of an image of `size` [2] (width, height)."""
    boxes = center_to_corners(target["boxes"].reshape(-1, 4)).float() * size.repeat(2)
    return {"labels": target["labels"] + first_label, "boxes": boxes}


def _check_image(image: Tensor) -> None:
    """Raise UserError unless an image is what torchvision's models take."""
    form = "images are floats [3, h, w] in [0, 1], or [1, h, w] of grey ones"
    if not isinstance(image, Tensor):
        raise UserError(f"an image is a {type(image).__name__}; {form}")
    if not image.is_floating_point():
        raise UserError(f"an image is of {image.dtype}; {form}: divide bytes by 255")
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"an image is {list(image.shape)}; {form}")


def _write_normalised(place: Tensor, image: Tensor) -> None:
    place.copy_((image - _column(MEAN, image)) / _column(STD, image))


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return constant(values, like)[:, None, None]
