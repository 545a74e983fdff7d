"""What a data set's own numbers say about the sizes of a detector for it."""

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
    fitting = [side for side in SIDES if side <= limit]
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


def _grid(count: int, sizes: np.ndarray) -> tuple[int, int]:
    """(rows, columns) of at least `count` points in the shape of the images' median."""
    height, width = np.median(sizes, axis=0)
    rows = max(2, round(math.sqrt(count * height / width)))
    return rows, max(2, math.ceil(count / rows))
