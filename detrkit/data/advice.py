"""What a data set's own numbers, and a step that was tried, say about the sizes of a detector and its training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detrkit.data.dataset import Dataset
from detrkit.errors import DataError

SIDES = (192, 240, 288, 320, 384, 448, 512, 640, 800)
"""shorter sides to choose from, in pixels"""
SEEN = 32.0
"""pixels that the side of a small object should have: two cells of a map of stride 16"""
BATCH = 4
"""images of a step: on BCCD's 205, five epochs bring AP50 48 with 4 and 15 with 8, as there are twice as many steps"""
STEPS = 2500
EPOCHS = (12, 100)
"""at least and at most, of `STEPS`"""
MINUTES = 35.0
"""of a training on a CPU"""
EVALUATED = 1 / 3
"""what an evaluated image takes of a trained one's time: no way back, no denoising, less padding"""
OVER = 2.0
"""what a process holds beside what a step keeps: gradients, and what the allocator does not give back (measured)"""
SHARE = 0.7
"""of the free memory that may be planned with"""


@dataclass(frozen=True)
class Advice:
    """Sizes for a data set, each with the numbers that it comes from.

    short, longest: of images, in pixels; grid: (rows, columns) of queries; reasons: for each a line.
    """

    short: int
    longest: int
    grid: tuple[int, int]
    reasons: dict[str, str]


def advise(dataset: Dataset, *, most: int) -> Advice:
    """Sizes for a training split.

    The shorter side is the smallest at which nineteen of twenty objects are `SEEN` pixels large or more, but neither
    larger than the images are (half of them, at least) nor than `most`. There are twice as many queries as the fullest
    of a hundred images has objects, in a grid of the images' shape.

    Raises DataError if the split has no objects.
    """
    records = dataset.records
    ordinary = ~records.crowd
    if not ordinary.any():
        raise DataError("the training images hold no objects, so nothing can be said of their sizes")
    short, long = records.sizes.min(1), records.sizes.max(1)
    image_of = np.repeat(np.arange(len(records)), np.diff(records.first))[ordinary]
    sides = np.sqrt(records.boxes[ordinary][:, 2] * records.boxes[ordinary][:, 3])
    share = float(np.quantile(sides / short[image_of], 0.05))  # of the image's shorter side
    wanted, own = SEEN / max(share, 1e-6), float(np.median(short))
    limit = min(most, max(own, SIDES[0]))
    fitting = [side for side in SIDES if side <= limit] or [most]
    side = next((side for side in fitting if side >= wanted), fitting[-1])
    shape = float(np.median(long / short))
    full = math.ceil(np.quantile(records.objects(), 0.99))
    rows, columns = _grid(max(2 * full, 36), records.sizes)
    found = (
        f"nineteen of twenty objects are at least {100 * share:.1f} % of the image's shorter side, "
        f"{share * side:.0f} pixels here"
    )
    if side < wanted and own <= most:
        found += f"; the images themselves are no larger than {own:.0f}"
    elif side < wanted:
        found += f"; {wanted:.0f} would show them as {SEEN:.0f} pixels, on a faster machine"
    return Advice(
        short=side,
        longest=math.ceil(side * min(shape, 2.0) * 1.25 / 32) * 32,
        grid=(rows, columns),
        reasons={
            "image size": found,
            "queries": f"the fullest of a hundred images holds {full} objects; twice as many queries, 36 at least",
        },
    )


@dataclass(frozen=True)
class Length:
    """How long to train, and why."""

    epochs: int
    evaluate_every: int
    reason: str


def advise_length(images: int, val_images: int, *, seconds: float | None) -> Length:
    """As many epochs as make `STEPS` steps, within `EPOCHS`; on a CPU no more than fit into `MINUTES`, but one.

    Args:
        images, val_images: of the two splits
        seconds: that a trained image takes on the CPU; None where a GPU trains
    """
    epochs = wanted = min(max(round(STEPS * BATCH / images), EPOCHS[0]), EPOCHS[1])
    rule = f"{STEPS} steps of {BATCH} images, {EPOCHS[0]} epochs at least and {EPOCHS[1]} at most"
    if seconds is None:
        return Length(epochs, _every(epochs), rule)

    def minutes(epochs: int) -> float:
        evaluations = -(-epochs // _every(epochs))
        return (epochs * images + evaluations * val_images * EVALUATED) * seconds / 60

    while epochs > 1 and minutes(epochs) > MINUTES:
        epochs -= 1
    found = (
        f"about {minutes(epochs):.0f} minutes at the {1 / seconds:.2g} images/s that this CPU trains, tried just now"
    )
    if epochs < wanted:
        found += f"; {wanted} epochs would be better and take {minutes(wanted):.0f}: smaller images (--most), or a GPU"
    return Length(epochs, _every(epochs), found)


def _every(epochs: int) -> int:
    return max(1, epochs // 20)


def advise_pieces(kept: float, free: int | None) -> tuple[int, str]:
    """How many images to take at once of a batch of `BATCH`, a half or quarter where memory holds no more; and why.

    Args:
        kept: bytes that an image's step keeps
        free: bytes that are free; None where nobody knows
    """
    found = "the preset's learning rate belongs to this batch"
    if free is None:
        return BATCH, found
    at_once = BATCH
    while at_once > 1 and OVER * kept * at_once > SHARE * free:
        at_once //= 2
    found += (
        f"; {at_once} at once take about {OVER * kept * at_once / 1e9:.1f} of the {free / 1e9:.1f} GB that are free"
    )
    if OVER * kept * at_once > SHARE * free:
        found += ", which may be too much: try a smaller --most"
    return at_once, found


def _grid(count: int, sizes: np.ndarray) -> tuple[int, int]:
    """(rows, columns) of at least `count` points in the shape of the images' median."""
    height, width = np.median(sizes, axis=0)
    rows = max(2, round(math.sqrt(count * height / width)))
    return rows, max(2, math.ceil(count / rows))
