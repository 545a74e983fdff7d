"""The front door from Python: a trained detector that takes whatever an image is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrkit.data import Category
from detrkit.drawing.predictions import draw_predictions
from detrkit.errors import DataError, UserError
from detrkit.evaluation.evaluate import Detects
from detrkit.evaluation.precision import choose_device, choose_precision, has_precision
from detrkit.export.loading import is_exported, open_exported
from detrkit.paths import with_home
from detrkit.predict import Unreadable, find_images, of_categories, predict, with_frames
from detrkit.recipe import Recipe
from detrkit.trained import open_trained
from detrkit.video import is_video
from detrkit.wording import counted

if TYPE_CHECKING:
    import supervision

COLUMNS = ("scores", "labels", "boxes", "queries", "points")  # of any detector's detections
Picture = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)  # two are the same where they are one: tensors do not compare to a yes or no
class Found:
    """What a detector found on one image, best first; k detections, all tensors on the CPU."""

    scores: Tensor
    """[k] float32 in [0, 1]"""
    labels: Tensor
    """[k] int64, places in the predictor's `classes`"""
    boxes: Tensor
    """[k, 4] float32 (x0, y0, x1, y1) in pixels of the image, not clipped"""
    names: tuple[str, ...]
    """[k] the classes' names"""
    points: Tensor | None
    """[k, 2] float32 (x, y) in pixels, of detectors that have them (salient points)"""
    image: Image.Image
    """RGB, upright"""
    path: Path | None
    """the file that the image came from"""
    classes: tuple[str, ...]
    """all names that the detector knows, by label"""
    frame: int | None = None
    """of a video: which frame, from 0"""
    time: float | None = None
    """of a video: seconds from its beginning"""
    named: Mapping[str, Tensor] = field(default_factory=dict)
    """[k, F] each, what else a geometry of one's own says of a detection, by its names (`Decoded.named`)"""

    def __len__(self) -> int:
        return len(self.scores)

    def draw(self, *, points: bool = False) -> Image.Image:
        """The image, enlarged where it is small, with boxes, names and scores, and the points if asked for.

        Raises UserError if points are, and the detector has none.
        """
        result = {"scores": self.scores, "labels": self.labels, "boxes": self.boxes}
        if points:
            if self.points is None:
                raise UserError("this detector has no points to draw")
            result["points"] = self.points
        return draw_predictions(self.image, result, list(self.classes), threshold=0.0, points=points)

    def to_supervision(self) -> supervision.Detections:
        """The same for the package `supervision`. Raises UserError if it is not installed."""
        try:
            import supervision
        except ImportError as error:
            raise UserError("the package supervision is not installed: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )


class Predictor:
    """A trained detector in evaluation mode, with its classes and the way it wants images; `detrkit.load` makes it.

    Args:
        detector: on `device`; its `detect` is called, and a detector's `for_inference()` takes less time over it.
        title: what it is.
        recipe: what it was built from; None of an exported file.
        categories: by label.
        transform: RGB image to RGB image as the detector is to see it.
        device: where it is.
        precision: "fp32", "bf16" or "fp16".
    """

    def __init__(
        self,
        *,
        detector: Detects,
        title: str,
        recipe: Recipe | None,
        categories: Sequence[Category],
        transform: Any,
        device: torch.device,
        precision: str,
    ):
        self.detector, self.title, self.recipe, self.transform = detector, title, recipe, transform
        self.device, self.precision = device, precision
        self.categories = tuple(categories)
        self.classes = tuple(category.name for category in categories)
        self._ids = [None if category.is_placeholder else label for label, category in enumerate(categories)]

    def __repr__(self) -> str:
        return f"Predictor({self.title!r}, {counted(len(self.classes), 'class')}, {self.device}, {self.precision})"

    def predict(
        self,
        images: Picture | Sequence[Picture],
        *,
        threshold: float = 0.3,
        batch_size: int = 4,
        skip_unreadable: bool = False,
    ) -> Any:
        """What is on an image, or on several; the same numbers as `detrkit predict`.

        Args:
            images: a file, a folder (with all images below it), a PIL image (turned upright as a file is), an array
                [H, W, 3] or [H, W] of uint8 (RGB), a tensor [3, H, W] of uint8 or of floats in [0, 1]; or a list of
                them. Or a video file.
            threshold: the lowest score that is kept.
            batch_size: images at once, those of one size; the numbers of an image do not depend on it.
            skip_unreadable: warn of files that cannot be read and leave them out, rather than raise.

        Returns:
            a `Found` for one image; a list of them for a list or a folder; for a video an iterator over its frames',
            which are decoded as they are asked for.

        Raises:
            UserError: no such file or folder, or something that is no image; a video in a list; too large a
                batch for the GPU's memory.
            DataError: a file cannot be read as an image, or as a video.
        """
        listed: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        alone = not isinstance(images, list | tuple) and not _is_folder(images)
        videos = [one for one in listed if isinstance(one, str | Path) and is_video(one) and not _is_folder(one)]
        if videos and alone:
            return self.stream(images, threshold=threshold, batch_size=batch_size)
        if videos:
            raise UserError(
                f"{videos[0]} is a video, and a list of results would hold all its frames in memory; predict it alone, "
                "or go over all with stream(...)"
            )
        skip = skip_unreadable and not alone
        found = list(self.stream(images, threshold=threshold, batch_size=batch_size, skip_unreadable=skip))
        return found[0] if alone else found

    def stream(
        self,
        images: Picture | Sequence[Picture],
        *,
        threshold: float = 0.3,
        batch_size: int = 4,
        skip_unreadable: bool = False,
    ) -> Iterator[Found]:
        """As `predict`, one by one as soon as their batch is done: for more images than memory holds, and videos.

        What `predict` raises comes with the first of them, of a file that cannot be read in its turn.
        """
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold is {threshold}; accepted are numbers from 0 to 1")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; accepted are numbers from 1 on")
        listed: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        given = [picture for one in listed for picture in _opened(one)]
        entries = predict(
            self.detector,
            with_frames(given),
            transform=self.transform,
            threshold=threshold,
            batch_size=batch_size,
            device=self.device,
            precision=self.precision,
        )
        for entry in entries:
            if isinstance(entry, Unreadable):
                if not skip_unreadable:
                    raise DataError(f"{entry.path}: {entry.reason}")
                warnings.warn(f"{entry.path}: {entry.reason}; it is left out", stacklevel=2)
                continue
            result = of_categories(entry.result, self._ids)
            names = tuple(self.classes[label] for label in result["labels"].tolist())
            yield Found(
                scores=result["scores"],
                labels=result["labels"],
                boxes=result["boxes"],
                names=names,
                points=result.get("points"),
                image=entry.image,
                path=entry.path,
                classes=self.classes,
                frame=None if entry.frame is None else entry.frame.number,
                time=None if entry.frame is None else entry.frame.time,
                named={name: values for name, values in result.items() if name not in COLUMNS},
            )


def load(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    weights: str | Path | None = None,
    which: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    trust: bool = False,
) -> Predictor:
    """A trained detector, ready for images.

    Args:
        target: a run's folder, one of its checkpoints, a recipe (then with `weights`), or an .onnx or .xml file of
            `detrkit export`, which needs onnxruntime or OpenVINO.
        overrides: `key=value`, laid over the recipe.
        weights: a .safetensors file, with a recipe.
        which: "best" (as if None) or "last", of a run.
        device: auto, cpu, cuda, cuda:1, mps, ...
        precision: auto (see `choose_precision`), fp32, bf16 or fp16; None: as the recipe trains, fp32 with a warning
            where the device has no such. An exported file runs in fp32, an OpenVINO file in bf16 too where it
            is asked for.
        trust: run also the code that the run or recipe brings along; see `load_recipe`.

    Raises:
        UserError: neither a run nor a recipe nor an exported file, no such device, weights that do not fit.
    """
    target = with_home(target)
    if is_exported(target):
        if overrides or weights is not None or which is not None:
            raise UserError(f"{target} is an exported file, which has weights and options of its own")
        wanted = "fp32" if precision in (None, "auto") else precision
        return _load_exported(target, "cpu" if device == "auto" else device, wanted)
    chosen = choose_device(device)
    file = None if weights is None else with_home(weights)
    trained = open_trained(str(target), overrides, which=which, weights=file, trust=trust)
    for note in trained.notes:
        warnings.warn(note, stacklevel=2)
    wanted = precision or trained.recipe.section("train").precision
    if precision is None and not has_precision(wanted, chosen):
        warnings.warn(
            f"trained in {wanted}, which {chosen} here has not: detections are computed in fp32", stacklevel=2
        )
        wanted = "fp32"
    return Predictor(
        detector=cast(Detects, trained.detector.to(chosen).for_inference()),
        title=trained.recipe.title or trained.recipe.name,
        recipe=trained.recipe,
        categories=trained.categories,
        transform=trained.source.augment.evaluate,
        device=chosen,
        precision=choose_precision(wanted, chosen),
    )


def _load_exported(path: Path, device: str, precision: str) -> Predictor:
    chosen = torch.device(device) if device == "cuda" else choose_device(device)
    exported = open_exported(path, chosen, precision)
    return Predictor(
        detector=exported,
        title=exported.card.title,
        recipe=None,
        categories=exported.card.categories,
        transform=exported.card.augment().evaluate,
        device=torch.device("cpu"),  # where images are put together, and detections come out
        precision="fp32",  # of what is around the file
    )


def _is_folder(given: object) -> bool:
    return isinstance(given, str | Path) and with_home(given).is_dir()


def _opened(given: Picture) -> list[Path | Image.Image]:
    """The images that something stands for: files are opened later, as they are needed."""
    if isinstance(given, str | Path):
        return [path for path, _ in find_images([with_home(given)])]
    if isinstance(given, Image.Image):
        return [given]
    if isinstance(given, Tensor):
        return [_of_tensor(given)]
    if isinstance(given, np.ndarray):
        return [_of_array(given)]
    raise UserError(
        f"{type(given).__name__} is no image; accepted are a path, a PIL image, an array [H, W, 3] of uint8, a tensor "
        "[3, H, W] of uint8 or of floats in [0, 1], and lists of them"
    )


def _of_tensor(tensor: Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.numel():
        raise UserError(f"a tensor should be one image [3, H, W], but is {list(tensor.shape)}")
    tensor = tensor.detach()
    if tensor.is_floating_point():
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"a tensor of floats should be RGB in [0, 1], not normalised, but goes from {low:.3g} to {high:.3g}"
            )
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise UserError(f"a tensor should be of uint8, or of floats in [0, 1], but is of {tensor.dtype}")
    return Image.fromarray(tensor.permute(1, 2, 0).cpu().numpy())


def _of_array(array: np.ndarray) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise UserError(
            f"an array should be [H, W, 3] (RGB) or [H, W] (grey) of uint8, but is {list(array.shape)} of {array.dtype}"
        )
    return Image.fromarray(array)
