"""Run a detector over a split of a data set and measure what it finds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn

from detrkit.data import Dataset, Loader
from detrkit.data.dataset import require_split
from detrkit.data.loader import WorkerPool, plan_batches
from detrkit.data.transforms import Augment, Sample
from detrkit.errors import UserError
from detrkit.evaluation.coco_stats import EvalResult, coco_stats
from detrkit.evaluation.precision import HALF, choose_precision
from detrkit.evaluation.scoring import Scoring
from detrkit.structures import Sizes
from detrkit.wording import counted

Progress = Callable[[int, int], None]
Found = dict[int, list[dict]]


def evaluate(
    detector: nn.Module,
    source,
    *,
    batch_size: int,
    device: torch.device | str,
    workers: int = 2,
    precision: str = "auto",
    split: str = "val",
    progress: Progress | None = None,
) -> EvalResult:
    """Evaluate ``detector`` on one split of ``source`` as COCO does.

    Where the loader has workers, one more process matches the detections with the truths while the next batch is
    detected. With torch.distributed initialised, every process calls this and works on its share of the images; the
    first process measures when all are done, and all of them return the same numbers. Afterwards the detector is in
    the mode (training or evaluation) that it was in before.

    Args:
        detector: its ``detect`` is called; already on ``device``
        source: the data set (``detrkit.data``)
        batch_size: images at once in each process
        workers: worker processes of the loader
        precision: "auto", "fp32", "bf16" or "fp16"; see `choose_precision`
        split: "val", or "train": the training images as they would be evaluated, each once and not augmented
        progress: called after each batch with (batches done, batches) of this process

    Returns:
        the numbers, with all detections on the first process and none on the others

    Raises:
        DataError: an image or the annotation file cannot be read
        UserError: there is no such split; or a batch does not fit into the GPU's memory
    """
    require_split(split)
    device = torch.device(device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    precision = _of_first(choose_precision(precision, device), world)  # "auto" measures, in each process anew
    ground_truth = getattr(source, split).ground_truth()
    # A label beyond the categories, or one whose category the data set does not have (the unused ones of 91
    # slots), is no detection: there is nothing that it could be compared with.
    in_data = set(ground_truth.getCatIds())
    category_ids = [c.id if c.id in in_data else None for c in source.categories]
    share = {"batch_size": batch_size, "epoch": 0, "seed": 0, "workers": workers, "rank": rank, "world": world}
    loader = source.loader(split="val", **share) if split == "val" else _training_images(source.train, **share)
    found: Found = {}
    was_training = detector.training
    detector.eval()
    # The process starts before the loader's, and before a thread of theirs could be copied halfway into it.
    beside: AbstractContextManager[Scoring | None]
    beside = Scoring(ground_truth) if workers and world == 1 else nullcontext()
    try:
        # Not inference_mode: a tensor that a module caches here could not be used in training afterwards.
        with beside as scoring, torch.no_grad(), autocast(device, precision):
            for number, batch in enumerate(loader, start=1):
                batch = batch.to(device)
                results = detect(detector, batch.images, batch.mask, batch.sizes)
                new = {
                    image_id: coco_detections(image_id, result, category_ids)
                    for image_id, result in zip(batch.image_ids, results, strict=True)
                    if image_id not in found
                }
                found |= new
                if scoring is not None:
                    scoring.add(list(new), _joined([new]))
                if progress is not None:
                    progress(number, len(loader))
            if scoring is not None:
                return replace(scoring.result(), detections=_joined([found]))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{counted(batch_size, 'image')} at once: the GPU has not enough memory. A smaller batch_size needs "
            f"less (in a recipe evaluate.batch_size).\n{error}"
        ) from error
    finally:
        detector.train(was_training)
    return _measure(ground_truth, found, rank, world)


def coco_detections(image_id: int, result: dict[str, Tensor], category_ids: Sequence[int | None]) -> list[dict]:
    """The detections of one image as COCO results, with the category ids of the data set.

    Boxes are rounded to a thousandth of a pixel and scores to the sixth place, so that a file of them stays
    small and gives the same numbers when it is evaluated again. Labels without a category id (None, or beyond
    the list) and boxes or scores that are not finite are left out.

    Args:
        result: scores [k], labels [k], boxes [k, 4] (x1, y1, x2, y2) in pixels; perhaps points [k, 2] in pixels, which
            then stand in the results as "point" beside what COCO asks for, and what a geometry says by other names
            [k, F], rounded as scores are
        category_ids: the category id of each label
    """
    scores = result["scores"].float().cpu().numpy().astype(np.float64)
    boxes = result["boxes"].float().cpu().numpy().astype(np.float64)
    labels = result["labels"].cpu().tolist()
    usable = np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
    boxes[:, 2:] -= boxes[:, :2]  # (x1, y1, x2, y2) to (x, y, width, height)
    more: list[dict] = [{} for _ in labels]
    for name, values in result.items():
        if name in ("scores", "labels", "boxes", "queries") or values.dim() != 2:  # no masks
            continue
        key, places = ("point", 3) if name == "points" else (name, 6)
        for row, numbers in zip(more, values.cpu().double().numpy().round(places).tolist(), strict=True):
            if math.isfinite(sum(numbers)):
                row[key] = numbers
    rows = zip(usable.tolist(), labels, boxes.round(3).tolist(), scores.round(6).tolist(), more, strict=True)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score, **beside}
        for fine, label, box, score, beside in rows
        if fine and 0 <= label < len(category_ids) and category_ids[label] is not None
    ]


class Detects(Protocol):
    """Whatever finds objects: a detector, or an exported file."""

    def detect(self, images: Tensor, mask: Tensor | None, sizes: Sizes) -> list[dict[str, Tensor]]: ...


def detect(detector: nn.Module | Detects, images: Tensor, mask: Tensor | None, sizes: Sizes) -> list[dict[str, Tensor]]:
    """The detections of a batch, by the ``detect`` that every detector has beside what nn.Module tells of it."""
    return cast(Detects, detector).detect(images, mask, sizes)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to what ``precision`` ("auto", "fp32", "bf16", "fp16") means on this device; nothing for float32.

    Raises:
        UserError: half precision on a device that does not have it
    """
    dtype = HALF.get(choose_precision(precision, device))
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@dataclass(frozen=True)
class _AsInEvaluation(Augment):
    """An augmentation that treats training images as those of an evaluation.

    It leaves the truths where they are, which evaluation does not take from the batches.
    """

    augment: Augment

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, image=self.augment.evaluate(sample.image))

    def evaluate(self, image: Image.Image) -> Image.Image:
        return self.augment.evaluate(image)


def _training_images(
    dataset: Dataset, *, batch_size: int, epoch: int, seed: int, workers: int, rank: int, world: int
) -> Loader:
    """Every training image once, in order and not augmented."""
    plain = copy.copy(dataset)
    plain.augment = _AsInEvaluation(dataset.augment)
    batches = plan_batches(len(plain), batch_size, train=False, epoch=epoch, seed=seed, rank=rank, world=world)
    return Loader(WorkerPool(plain, workers), batches, epoch=epoch, seed=seed)


def _of_first(precision: str, world: int) -> str:
    """What the first process has chosen, in all of them."""
    chosen = [precision]
    if world > 1:
        dist.broadcast_object_list(chosen)
    return chosen[0]


def _measure(ground_truth: COCO, found: Found, rank: int, world: int) -> EvalResult:
    """Join the images of all processes, each once even if a sampler hands it out twice, and measure them."""
    if world == 1:
        return coco_stats(ground_truth, _joined([found]))
    shares: list[Found] | None = [{}] * world if rank == 0 else None
    dist.gather_object(found, shares)
    outcome: list[EvalResult | Exception | None] = [None]
    if shares is not None:
        # Whatever goes wrong here must reach the other processes too, or they would wait for ever.
        try:
            outcome = [coco_stats(ground_truth, _joined(shares))]
        except Exception as error:
            outcome = [error]
    result = outcome[0]
    if isinstance(result, EvalResult):
        outcome = [EvalResult(result.stats, result.per_class, [], result.images)]
    dist.broadcast_object_list(outcome)
    result = result if rank == 0 else outcome[0]
    if isinstance(result, Exception):
        raise result
    assert result is not None  # it is the first process's
    return result


def _joined(shares: Sequence[Found]) -> list[dict]:
    joined: Found = {}
    for share in shares:
        joined |= share
    return [detection for image_id in sorted(joined) for detection in joined[image_id]]
