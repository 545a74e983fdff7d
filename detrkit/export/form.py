"""What an exported detector takes and gives, as a module whose graph is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from detrkit.detections import best_detections
from detrkit.detector import Detector
from detrkit.errors import UserError
from detrkit.pixels import MEAN, STD
from detrkit.system import BaseDetector

Pixels = Literal["uint8", "normalised"]
RAW = ("logits", "boxes", "points", "objectness")  # what a file without detections gives, where there is such
BATCH, HEIGHT, WIDTH = "batch", "height", "width"  # names of the dimensions that are free


@dataclass(frozen=True, kw_only=True)
class Form:
    """What goes in and what comes out."""

    pixels: Pixels = "uint8"
    """uint8: RGB as in a file; the graph normalises. normalised: float32, normalised and zero in padding"""
    mask: bool = True
    """whether the padding mask is an input; without it all images of a batch fill it"""
    detections: bool = True
    """whether detections come out, with the original sizes as an input; else the last layer's predictions"""

    @property
    def inputs(self) -> tuple[str, ...]:
        """images [B, 3, H, W]; mask [B, H, W] bool, True where padded; sizes [B, 2] int64 (height, width)."""
        return ("images", *(["mask"] if self.mask else []), *(["sizes"] if self.detections else []))

    @property
    def free(self) -> dict[str, dict[int, str]]:
        """The free dimensions of each input, by place."""
        image = {0: BATCH, 2: HEIGHT, 3: WIDTH}
        free = {"images": image, "mask": {0: BATCH, 1: HEIGHT, 2: WIDTH}, "sizes": {0: BATCH}}
        return {name: free[name] for name in self.inputs}

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with; no two dimensions are alike, and the coarsest level has several cells a side."""
        batch, height, width = 2, 416, 544
        images = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
        mask = torch.zeros(batch, height, width, dtype=torch.bool)
        mask[1, height // 2 :] = True
        given = {
            "images": images if self.pixels == "uint8" else images.float(),
            "mask": mask,
            "sizes": torch.tensor([[height, width], [height // 2, width]]),
        }
        return tuple(given[name] for name in self.inputs)


class ExportedForm(nn.Module):
    """A detector as its graph is written: inputs and outputs as a `Form` says, in the order of its names.

    Raises:
        UserError: the detector cannot be exported.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: nn.Module, form: Form):
        super().__init__()
        if isinstance(detector, BaseDetector) and detector.no_export:
            raise UserError(f"this detector cannot be exported: {detector.no_export}")
        if not isinstance(detector, Detector):
            raise UserError(f"a {type(detector).__name__} cannot be exported; detectors of the one loop can")
        self.detector, self.form = detector, form
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The values of `output_names` for those of `Form.inputs`."""
        return tuple(self.named(*inputs).values())

    def named(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name.

        With detections those of `detrkit.detections.best_detections`; else the last layer's `logits` [B, N, K],
        `boxes` [B, N, 4] (cx, cy, w, h) in [0, 1], and where there are such `points` [B, N, 2], `objectness` [B, N, 1]
        and what the geometry says by name [B, N, F].
        """
        given = dict(zip(self.form.inputs, inputs, strict=True))
        images, mask = given["images"], given.get("mask")
        if self.form.pixels == "uint8":  # as detrkit.data.batch.normalise
            images = images.to(torch.float32).div(255).sub(self.mean).div(self.std)
            images = images if mask is None else images.masked_fill(mask[:, None], 0)
        output = self.detector(images, mask)
        if self.form.detections:
            return best_detections(output, given["sizes"], self.detector.detect_options)
        columns = {**output.told, **{name: getattr(output, name) for name in RAW}}
        return {name: column[-1] for name, column in columns.items() if column is not None}

    @torch.no_grad()
    def output_names(self) -> tuple[str, ...]:
        """What comes out, by order."""
        return tuple(self.named(*self.form.example()))
