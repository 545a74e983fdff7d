"""Drawn predictions on a few validation images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from detrkit.boxes import center_to_corners
from detrkit.data.dataset import DataSource
from detrkit.drawing.predictions import draw_predictions, image_of
from detrkit.drawing.saving import save_picture
from detrkit.evaluation.evaluate import autocast, detect
from detrkit.pixels import MEAN, STD


@torch.no_grad()
def write_pictures(
    detector: nn.Module,
    folder: Path,
    *,
    source: DataSource,
    count: int,
    threshold: float,
    device: torch.device,
    precision: str,
) -> list[Path]:
    """Draw what the detector finds on the first `count` validation images, beside the truth.

    The images are shown as the detector sees them, at its input size. Files are called by image id.
    """
    names = [category.name for category in source.categories]
    written: list[Path] = []
    was_training = detector.training
    detector.eval()
    try:
        for batch in source.loader(split="val", batch_size=1, epoch=0, seed=0, workers=0):
            if len(written) == count:
                break
            size = _unpadded(batch.images, batch.mask)
            moved = batch.to(device)
            with autocast(device, precision):
                (found,) = detect(detector, moved.images, moved.mask, torch.tensor([size], device=device))
            picture = draw_predictions(
                image_of(batch.images[0, :, : size[0], : size[1]], MEAN, STD),
                {name: values.cpu() for name, values in found.items()},
                names,
                truth=_in_pixels(batch.targets[0], size),
                threshold=threshold,
                points=True,
            )
            path = folder / f"{batch.image_ids[0]}.png"
            save_picture(picture, path)
            written.append(path)
    finally:
        detector.train(was_training)
    return written


def _unpadded(images: Tensor, mask: Tensor | None) -> tuple[int, int]:
    """(height, width) of the only image of a batch, without padding."""
    if mask is None:
        return images.shape[-2], images.shape[-1]
    return int((~mask[0, :, 0]).sum()), int((~mask[0, 0]).sum())


def _in_pixels(target: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    height, width = size
    boxes = center_to_corners(target["boxes"]) * torch.tensor([width, height, width, height])
    return {"labels": target["labels"], "boxes": boxes}
