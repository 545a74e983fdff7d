"""From predictions to detections: scores, and the best of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detrkit.boxes import center_to_corners
from detrkit.errors import UserError
from detrkit.layers import Count, at_most, take
from detrkit.recipe import Options
from detrkit.structures import Output, Sizes


@dataclass(frozen=True, kw_only=True)
class DetectOptions(Options):
    """How predictions become detections."""

    keep: Count = 300
    """detections an image, the best of all N * K (query, class) pairs"""
    scores: Literal["sigmoid", "softmax"] = "sigmoid"
    """how logits become scores. softmax: the last logit is "no object", and each query gives one detection, of its best
    class (DETR). sigmoid with head.background = true (SMCA): "no object" is scored as the other classes are, and its
    label K can come out, as published; evaluation and predictions leave it out"""
    objectness: bool = False
    """multiply class scores by the objectness; no published SAP-DETR result does"""


def class_scores(output: Output, layer: int, options: DetectOptions) -> Tensor:
    """[B, N, K] in [0, 1]: how sure a decoder layer is of each class (K + 1, see `DetectOptions.scores`).

    Raises:
        UserError: the output has no "no object" logit, or no objectness, that the options ask for.
    """
    logits = output.logits[layer]
    if options.scores == "softmax" and not output.background:
        raise UserError(
            'detect.scores = "softmax" takes the last logit for "no object", and this output says that it is a class; '
            "set head.background = true, in code Output(..., background=True)"
        )
    scores = logits.softmax(-1)[..., :-1] if options.scores == "softmax" else logits.sigmoid()
    if options.objectness:
        if output.objectness is None:
            raise UserError("detect.objectness = true needs head.objectness = true")
        scores = scores * output.objectness[layer].sigmoid()
    return scores


def best_detections(output: Output, sizes: Sizes, options: DetectOptions) -> dict[str, Tensor]:
    """What `select` gives, of all images at once: k is the same for each, so every column is [B, k, ...].

    Raises:
        UserError: as `class_scores`, or there is not a size for each image.
    """
    scores, own = class_scores(output, -1, options), None
    sizes = torch.as_tensor(sizes)
    if not torch.compiler.is_compiling() and sizes.shape != (len(scores), 2):
        told = f"they are [B, 2], (height, width) of each of {len(scores)} images"
        raise UserError(f"sizes are {list(sizes.shape)}; {told}")
    if options.scores == "softmax":  # the best class of each query
        scores, own = scores.max(-1, keepdim=True)
    classes = scores.shape[-1]
    flat = scores.flatten(1)
    best, index = flat.topk(at_most(options.keep, flat.shape[1]))
    query, label = index // classes, index % classes
    if own is not None:
        label = own.squeeze(-1).gather(1, query)
    scale = sizes.to(output.boxes).flip(-1)[:, None]  # [B, 1, 2] (width, height)
    boxes = take(center_to_corners(output.boxes[-1]), query) * scale.repeat(1, 1, 2)
    columns = {name: take(value[-1], query) for name, value in output.told.items()}
    columns |= {"scores": best, "labels": label, "boxes": boxes, "queries": query}
    if output.points is not None:
        columns["points"] = take(output.points[-1], query) * scale
    return columns


def select(output: Output, sizes: Sizes, options: DetectOptions) -> list[dict[str, Tensor]]:
    """The detections that an output means, image by image; see `detrkit.detector.Detector.detect`.

    Raises UserError as `best_detections` does.
    """
    columns = best_detections(output, sizes, options)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
