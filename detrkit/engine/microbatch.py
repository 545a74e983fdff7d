"""Cutting a batch into pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detrkit.data import Batch


def cut(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in pieces of `size` images (the last may be smaller), each padded no further than it needs.

    A piece is what the loader would have made of its images: the same pixels, padding to the piece's largest
    image, no mask if nothing is padded. Cut on the host, so that looking at the masks costs no wait.
    """
    if size >= len(batch.targets):
        yield batch
        return
    for first in range(0, len(batch.targets), size):
        part = slice(first, first + size)
        images, mask = batch.images[part], None if batch.mask is None else batch.mask[part]
        if mask is not None:
            # The first column and the first row are padded only below and right of the image.
            height = int((~mask[:, :, 0]).sum(1).max())
            width = int((~mask[:, 0, :]).sum(1).max())
            images, mask = images[:, :, :height, :width].contiguous(), mask[:, :height, :width].contiguous()
            if not mask.any():
                mask = None
        yield type(batch)(
            images=images,
            mask=mask,
            targets=batch.targets[part],
            image_ids=batch.image_ids[part],
            sizes=batch.sizes[part],
        )
