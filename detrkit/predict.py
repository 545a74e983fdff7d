"""A detector on image files and videos: find them, read them while the detector works, and hand on what it sees."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock

import torch
from PIL import Image
from torch import Tensor, nn

from detrkit.data.batch import Example, collate
from detrkit.data.decode import decode, name_of, open_to_rgb
from detrkit.data.files import walk
from detrkit.errors import DataError, UserError
from detrkit.evaluation.evaluate import Detects, autocast, detect
from detrkit.paths import with_home
from detrkit.video import Frame, frames, is_video
from detrkit.wording import counted

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jfif", ".avif")


@dataclass(frozen=True)
class Prediction:
    """What was found on one image.

    Args:
        index: its place among the images, and frames of videos
        path: the file; None of an image that was none
        image: as it was read: RGB, upright
        result: scores [k], labels [k], boxes [k, 4] (x1, y1, x2, y2) and perhaps points [k, 2], in pixels of
            ``image``, best first, on the CPU, float32
        frame: of a video, where in it the image is
    """

    index: int
    path: Path | None
    image: Image.Image
    result: dict[str, Tensor]
    frame: Frame | None = None


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read as an image, or not to its end as a video, and why. path: "an image in memory" of
    an open image without a file."""

    index: int
    path: Path
    reason: str


def find_images(inputs: Sequence[Path | str], *, leave_out: Path | None = None) -> list[tuple[Path, Path]]:
    """The image files that ``inputs`` mean, in the order given, each once.

    A folder means the files with one of ``SUFFIXES`` in it and in its folders, sorted; names that begin with a
    dot are passed over. A file is taken whatever its suffix, a video too.

    Args:
        leave_out: a folder whose files are not meant where it lies in one that is named, such as the one that results
            are written to

    Returns:
        for each image its path, and its path below the folder that was named (its name where the file was)

    Raises:
        UserError: an input does not exist, or there is no image in all of them
    """
    apart = None if leave_out is None else leave_out.resolve()
    found: dict[Path, tuple[Path, Path]] = {}
    for given in map(with_home, inputs):
        if given.is_file():
            found.setdefault(given.resolve(), (given, Path(given.name)))
        elif given.is_dir():
            inside = apart if apart is not None and apart.is_relative_to(given.resolve()) else None
            for path in sorted(walk(given)):
                below = path.relative_to(given)
                hidden = any(part.startswith(".") for part in below.parts)
                if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
                    continue
                if inside is None or not path.resolve().is_relative_to(inside):
                    found.setdefault(path.resolve(), (path, below))
        elif address := re.match(
            r"([A-Za-z][\w+.-]+):/(.*)", str(given)
        ):  # a path has no two slashes in a row any more
            raise UserError(
                f"{address[1]}://{address[2]}: images and videos are not fetched here; save this one, and name its file"
            )
        else:
            raise UserError(f"{given}: there is no such file or folder")
    if not found:
        where = ", ".join(str(given) for given in inputs) or "nothing was named"
        accepted = " ".join(SUFFIXES)
        raise UserError(f"no images found ({where}); accepted in folders are {accepted}; a video is named by its file")
    return list(found.values())


def with_frames(images: Iterable[Path | Image.Image]) -> Iterator[Path | Image.Image | Frame | Unreadable]:
    """The same with the frames of a video in its place, decoded as they are asked for."""
    for given in images:
        if not isinstance(given, Path) or not is_video(given):
            yield given
            continue
        try:
            yield from frames(given)
        except DataError as error:
            yield Unreadable(0, given, str(error).removeprefix(f"{given}: "))


def predict(
    detector: nn.Module | Detects,
    images: Iterable[Path | Image.Image | Frame | Unreadable],
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
        images: files, images that are open already, frames of videos; what could not be read is handed on
        transform: RGB image to RGB image as the detector is to see it: ``source.augment.evaluate``
        threshold: detections with a lower score are left out
        batch_size: images at once, those of one size: nothing is padded, since published systems give other results in
            padding, so that what is found on an image would depend on the images beside it
        readers: threads that read

    Raises:
        UserError: a batch does not fit into the GPU's memory
    """
    device = torch.device(device)
    opening = Lock()  # an image may be given several times, and Pillow reads its file when first asked for pixels

    def read(index: int, given: Path | Image.Image | Frame | Unreadable) -> tuple[Prediction, Example] | Unreadable:
        if isinstance(given, Unreadable):
            return replace(given, index=index)
        path, frame = None, None
        if isinstance(given, Frame):
            path, frame, image = given.path, given, given.image
        else:
            name = given if isinstance(given, Path) else Path(name_of(given))
            try:
                if isinstance(given, Path):
                    path, image = given, decode(given)
                else:
                    with opening:
                        image = open_to_rgb(given)
            except DataError as error:
                return Unreadable(index, name, str(error).removeprefix(f"{name}: "))
        example = Example.without_truth(transform(image), index, (image.height, image.width))
        return Prediction(index, path, image, {}, frame), example

    coming = enumerate(images)
    with ThreadPoolExecutor(max_workers=readers) as pool:
        waiting = deque(pool.submit(read, *entry) for entry in islice(coming, 2 * batch_size))
        while waiting:
            group: list[tuple[Prediction, Example] | Unreadable] = []
            while waiting and len(group) < batch_size:
                group.append(waiting.popleft().result())
                waiting.extend(pool.submit(read, *entry) for entry in islice(coming, 1))
            examples = [entry[1] for entry in group if not isinstance(entry, Unreadable)]
            results = iter(_detect(detector, examples, device, precision, threshold))
            for entry in group:
                if isinstance(entry, Unreadable):
                    yield entry
                    continue
                result = next(results)
                if isinstance(result, DataError):
                    yield Unreadable(entry[0].index, entry[0].path or Path(name_of(entry[0].image)), str(result))
                else:
                    yield replace(entry[0], result=result)


def of_categories(result: dict[str, Tensor], ids: Sequence[int | None]) -> dict[str, Tensor]:
    """The detections whose label has a category id: not of unused ids, and not of a "no object" that is scored."""
    known = [0 <= label < len(ids) and ids[label] is not None for label in result["labels"].tolist()]
    return {name: values[known] for name, values in result.items()}


def _detect(
    detector: nn.Module | Detects, examples: list[Example], device: torch.device, precision: str, threshold: float
) -> list[dict[str, Tensor] | DataError]:
    """What was found on each image, or why the detector, an exported file, does not take it."""
    alike: dict[torch.Size, list[int]] = {}
    for place, example in enumerate(examples):
        alike.setdefault(example.image.shape, []).append(place)
    found: dict[int, dict[str, Tensor] | DataError] = {}
    for places in alike.values():
        group = [examples[place] for place in places]
        try:
            batch = collate(group).to(device)
            with torch.inference_mode(), autocast(device, precision):
                results = detect(detector, batch.images, batch.mask, batch.sizes)
        except DataError as error:
            found |= dict.fromkeys(places, error)
        except torch.OutOfMemoryError as error:
            less = (
                "A smaller batch_size needs less (on the command line --batch)"
                if len(group) > 1
                else "A smaller one fits"
            )
            raise UserError(
                f"{counted(len(group), 'image')} at once: the GPU has not enough memory. {less}.\n{error}"
            ) from error
        else:
            found |= dict(zip(places, (_above(result, threshold) for result in results), strict=True))
    return [found[place] for place in range(len(examples))]


def _above(result: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """The detections from ``threshold`` on, on the CPU, floating point values as float32."""
    keep = (result["scores"].float() >= threshold) & torch.isfinite(result["boxes"]).all(-1)
    kept = {name: values[keep].cpu() for name, values in result.items()}
    return {name: values.float() if values.is_floating_point() else values for name, values in kept.items()}
