"""A detector's look at one image: what it found, and what its decoder did on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from detrkit.boxes import center_to_corners
from detrkit.data.batch import Example, collate
from detrkit.detector import Detector
from detrkit.errors import UserError
from detrkit.show.recording import LayerRecord, record_layers
from detrkit.structures import Reference


@dataclass(frozen=True)
class Detection:
    """The best class of one query. `box` is (x0, y0, x1, y1) in [0, 1] of the image."""

    query: int
    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """One image and the decoder's work on it, on the CPU in float32."""

    image: Image.Image
    """as the detector saw it"""
    layers: list[LayerRecord]
    """Y records of one image"""
    scores: Tensor
    """[Y, N] the best class score of each query"""
    references: Tensor
    """[Y, N, 2] the points (x, y) in [0, 1] that the layers looked around"""
    answer: Tensor
    """[N, 2] the last layer's own point, the middle of its box where it predicts none"""
    detections: list[Detection]
    """best first, one for each query"""

    @property
    def path(self) -> Tensor:
        """[Y + 1, N, 2] every query's references, then its answer."""
        return torch.cat((self.references, self.answer[None]))

    @property
    def reference(self) -> Reference:
        """Where the queries start."""
        return self.layers[0].reference

    def cells(self) -> Tensor | None:
        """[N, 4] (x0, y0, x1, y1) of each query's grid cell; None where the geometry has no grid."""
        cells = self.reference.cells()
        return None if cells is None else cells[0]

    def above(self, threshold: float) -> list[Detection]:
        """The detections from a score on; the best one by itself where none has it."""
        return [d for d in self.detections if d.score >= threshold] or self.detections[:1]

    def check(self, queries: Sequence[int], layers: Sequence[int]) -> None:
        """UserError unless there are such queries, counted from 0, and layers, counted from 1."""
        count, depth = self.references.shape[1], len(self.layers)
        if wrong := [q for q in queries if not 0 <= q < count]:
            raise UserError(f"--query {wrong[0]}: this detector's queries are numbered 0 to {count - 1}")
        if wrong := [y for y in layers if not 1 <= y <= depth]:
            raise UserError(f"--layer {wrong[0]}: this detector's decoder layers are numbered 1 to {depth}")


@torch.no_grad()
def look_at(detector: nn.Module, image: Image.Image, names: Sequence[str]) -> Look:
    """Run a detector in evaluation mode, on the CPU, over an image at its input size.

    Raises:
        UserError: it is no DETR.
    """
    if not isinstance(detector, Detector):
        raise UserError(f"this shows what a DETR's decoder does, and {type(detector).__name__} has none")
    batch = collate([Example.without_truth(image, 0, (image.height, image.width))])
    with record_layers(detector.decoder) as layers:
        output = detector(batch.images, batch.mask).float()
    classes = torch.stack([detector.scores(output, layer)[0] for layer in range(len(layers))])  # [Y, N, K]
    best, labels = classes.max(-1)
    boxes = center_to_corners(output.boxes[-1, 0])
    answer = output.boxes[-1, 0, :, :2] if output.points is None else output.points[-1, 0]
    detections = [
        Detection(
            query=query,
            label=(label := int(labels[-1, query])),
            name=names[label] if label < len(names) else f"class {label}",
            score=float(best[-1, query]),
            box=tuple(boxes[query].tolist()),
        )
        for query in best[-1].argsort(descending=True).tolist()
    ]
    references = torch.stack([layer.reference.point[0].float() for layer in layers])
    return Look(image, layers, best, references, answer, detections)
