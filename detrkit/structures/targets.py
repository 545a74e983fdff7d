"""What is true of a batch's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrkit.layers import constant, sent

Target = dict[str, Tensor]
"""One image's truth: `labels` [T] int64 in 0..K-1, `boxes` [T, 4] as (cx, cy, w, h) in [0, 1]."""

Sizes = Tensor | Sequence[Sequence[float]]
"""[B, 2] the (height, width) of images in pixels."""


@dataclass(frozen=True)
class Targets:
    """A batch's truth, padded to the image with the most objects so that costs are one tensor."""

    labels: Tensor
    """[B, T] int64, 0 in empty places"""
    boxes: Tensor
    """[B, T, 4] as (cx, cy, w, h); (0.5, 0.5, 1, 1) in empty places"""
    counts: tuple[int, ...]
    """objects of each image"""
    images: int
    """how many images the losses are a mean over: these, or more where a batch comes in several pieces; 0 where there
    are no queries but those that answer for an object"""

    @classmethod
    def pad(cls, targets: Sequence[Target], dtype: torch.dtype = torch.float32, images: int | None = None) -> Targets:
        """Batch the images' truths, boxes in `dtype`. Counts are read from shapes, so nothing waits for the device."""
        counts = tuple(len(t["labels"]) for t in targets)
        labels = pad_sequence([t["labels"] for t in targets], batch_first=True)
        boxes = pad_sequence([t["boxes"].reshape(-1, 4).to(dtype) for t in targets], batch_first=True)
        padded = cls(labels, boxes, counts, len(counts) if images is None else images)
        if min(counts) < max(counts):
            empty = constant([0.5, 0.5, 1.0, 1.0], boxes)
            return replace(padded, boxes=torch.where(padded.filled[..., None], boxes, empty))
        return padded

    @property
    def filled(self) -> Tensor:
        """[B, T] bool, False in empty places."""
        return torch.arange(self.labels.shape[1], device=self.labels.device) < self._counts()[:, None]

    def _counts(self) -> Tensor:
        return sent(torch.tensor(self.counts), self.labels.device)

    def repeat(self, times: int) -> Targets:
        """The same with each object so many times, all objects of an image and then all again."""
        if times == 1 or not self.boxes.shape[1]:
            return self
        # In places beyond an image's repeated objects, which nobody reads, they go on.
        places = torch.arange(times * self.boxes.shape[1], device=self.labels.device)
        index = places % self._counts().clamp(min=1)[:, None]
        boxes = self.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return replace(
            self, labels=self.labels.gather(1, index), boxes=boxes, counts=tuple(times * n for n in self.counts)
        )
