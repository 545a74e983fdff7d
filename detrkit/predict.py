"""A detector on image files: find them, read them while the detector works, and hand on what it sees."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from detrkit.data.batch import Example, collate, to_pixels
from detrkit.data.decode import decode, to_rgb
from detrkit.errors import DataError, UserError
from detrkit.evaluation.evaluate import autocast, detect

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jfif", ".avif")


@dataclass(frozen=True)
class Prediction:
    """What was found on one image.

    Args:
        index: its place among the images
        path: the file; None of an image that was none
        image: as it was read: RGB, upright
        result: scores [k], labels [k], boxes [k, 4] (x1, y1, x2, y2) and perhaps points [k, 2], in pixels of
            ``image``, best first, on the CPU, float32
    """

    index: int
    path: Path | None
    image: Image.Image
    result: dict[str, Tensor]


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read as an image, and why."""

    index: int
    path: Path
    reason: str


def find_images(inputs: Sequence[Path | str], *, leave_out: Path | None = None) -> list[tuple[Path, Path]]:
    """The image files that ``inputs`` mean, in the order given, each once.

    A folder means the files with one of ``SUFFIXES`` in it and in its folders, sorted; names that begin with a
    dot are passed over. A file is taken whatever its suffix.

    Args:
        leave_out: a folder whose files are not meant, such as the one that results are written to

    Returns:
        for each image its path, and its path below the folder that was named (its name where the file was)

    Raises:
        UserError: an input does not exist, or there is no image in all of them
    """
    apart = None if leave_out is None else leave_out.resolve()
    found: dict[Path, tuple[Path, Path]] = {}
    for given in map(Path, inputs):
        if given.is_file():
            found.setdefault(given.resolve(), (given, Path(given.name)))
        elif given.is_dir():
            for path in sorted(given.rglob("*")):
                below = path.relative_to(given)
                hidden = any(part.startswith(".") for part in below.parts)
                if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
                    continue
                if apart is None or not path.resolve().is_relative_to(apart):
                    found.setdefault(path.resolve(), (path, below))
        else:
            raise UserError(f"{given}: there is no such file or folder")
    if not found:
        where = ", ".join(str(given) for given in inputs) or "nothing was named"
        raise UserError(f"no images found ({where}); accepted in folders are {' '.join(SUFFIXES)}")
    return list(found.values())


def predict(
    detector: nn.Module,
    images: Sequence[Path | Image.Image],
    *,
    transform: Callable[[Image.Image], Image.Image],
    threshold: float = 0.3,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    readers: int = 2,
) -> Iterator[Prediction | Unreadable]:
    """Detect on images; yields one entry for each, in order, as soon as its batch is done.

    The next images are read by threads while the detector works on a batch, and few are held at a time.

    Args:
        detector: in evaluation mode, on ``device``
        images: files, or images that are open already
        transform: RGB image to RGB image as the detector is to see it: ``source.augment.evaluate``
        threshold: detections with a lower score are left out
        batch_size: images at once; they are padded to a common size
        readers: threads that read
    """
    device = torch.device(device)

    def read(index: int) -> tuple[Image.Image, Example] | Unreadable:
        given = images[index]
        if isinstance(given, Path):
            try:
                image = decode(given)
            except DataError as error:
                return Unreadable(index, given, str(error).removeprefix(f"{given}: "))
        else:
            image = to_rgb(given)
        nothing: dict[str, Any] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        size = (image.height, image.width)
        return image, Example(image=to_pixels(transform(image)), image_id=index, size=size, **nothing)

    with ThreadPoolExecutor(max_workers=readers) as pool:
        waiting = deque(pool.submit(read, index) for index in range(min(2 * batch_size, len(images))))
        for start in range(0, len(images), batch_size):
            group = []
            for index in range(start, min(start + batch_size, len(images))):
                group.append(waiting.popleft().result())
                if index + 2 * batch_size < len(images):
                    waiting.append(pool.submit(read, index + 2 * batch_size))
            examples = [entry[1] for entry in group if not isinstance(entry, Unreadable)]
            results = iter(_detect(detector, examples, device, precision, threshold))
            for entry in group:
                if isinstance(entry, Unreadable):
                    yield entry
                else:
                    image, example = entry
                    given = images[example.image_id]
                    path = given if isinstance(given, Path) else None
                    yield Prediction(example.image_id, path, image, next(results))


def of_categories(result: dict[str, Tensor], ids: Sequence[int | None]) -> dict[str, Tensor]:
    """The detections whose label has a category id: not of unused ids, and not of a "no object" that is scored."""
    known = [0 <= label < len(ids) and ids[label] is not None for label in result["labels"].tolist()]
    return {name: values[known] for name, values in result.items()}


def _detect(
    detector: nn.Module, examples: list[Example], device: torch.device, precision: str, threshold: float
) -> list[dict[str, Tensor]]:
    if not examples:
        return []
    batch = collate(examples).to(device)
    with torch.inference_mode(), autocast(device, precision):
        results = detect(detector, batch.images, batch.mask, batch.sizes)
    return [_above(result, threshold) for result in results]


def _above(result: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """The detections from ``threshold`` on, on the CPU, floating point values as float32."""
    keep = (result["scores"].float() >= threshold) & torch.isfinite(result["boxes"]).all(-1)
    kept = {name: values[keep].cpu() for name, values in result.items()}
    return {name: values.float() if values.is_floating_point() else values for name, values in kept.items()}
