"""Cutting a batch into pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from detrkit.data import Batch


def count_objects(batch: Batch) -> int:
    """How many objects there are in the images of a batch."""
    return sum(len(target["labels"]) for target in batch.targets)


def cut(batch: Batch, size: int, device: torch.device) -> Iterator[Batch]:
    """The batch on a device in pieces of `size` images (the last may be smaller), each padded no further than needed.

    A piece is what the loader would have made of its images: the same pixels, padding to the piece's largest
    image, no mask if nothing is padded. Its size is read from the masks on the host, which costs no wait; the padding
    is cut off on the device, since what is copied on the host is not in pinned memory any more.
    """
    if size >= len(batch.targets):
        yield batch.to(device)
        return
    for first in range(0, len(batch.targets), size):
        part = slice(first, first + size)
        mask = None if batch.mask is None else batch.mask[part]
        whole = replace(
            batch,
            images=batch.images[part],
            mask=mask,
            targets=batch.targets[part],
            image_ids=batch.image_ids[part],
            sizes=batch.sizes[part],
            skipped=(),
        ).to(device)
        if mask is None or whole.mask is None:
            yield whole
            continue
        # The first column and the first row are padded only below and right of the image.
        height = int((~mask[:, :, 0]).sum(1).max())
        width = int((~mask[:, 0, :]).sum(1).max())
        is_padded = bool(mask[:, :height, :width].any())
        yield replace(
            whole,
            images=whole.images[:, :, :height, :width].contiguous(),
            mask=whole.mask[:, :height, :width].contiguous() if is_padded else None,
        )
