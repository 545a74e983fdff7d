"""What pictures of a detector's inside share: panels that show the image, at a size that can be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from detrkit.drawing.labels import class_colour

LAYER_COLOURS = "plasma"
TITLE = 5.5  # inches that a figure's title takes


def figure_for(
    image: Image.Image, *, rows: int = 1, columns: int = 1, side: float, words: float
) -> tuple[Figure, np.ndarray]:
    """A figure of panels with the image's proportions, the longer side `side` inches, and its axes [rows, columns].

    words: how many inches the widest title of a panel takes, and so a panel of a high image, too
    """
    scale = side / max(image.size)
    width, height = max(image.width * scale, words), max(image.height * scale, 0.3 * side)
    size = (max(columns * (width + 0.25) + 1.0, TITLE), rows * (height + 0.4) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def show_image(axes: Axes, image: Image.Image, *, faded: bool = False) -> None:
    """Put the image on axes that run from 0 to 1 in both directions; faded for what is drawn over it."""
    pixels = np.asarray(image.convert("RGB"), dtype=float) / 255
    if faded:
        grey = pixels.mean(-1, keepdims=True).repeat(3, axis=-1)
        pixels = 0.25 + 0.7 * (0.3 * pixels + 0.7 * grey)
    axes.imshow(pixels.clip(0, 1), extent=(0, 1, 1, 0), aspect=image.height / image.width, interpolation="bilinear")
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])


def draw_box(axes: Axes, box: Sequence[float], label: int | None = None, *, dashed: bool = False) -> None:
    """Outline (x0, y0, x1, y1), in its class's colour with a dark rim, or white where it has no class."""
    x0, y0, x1, y1 = box
    colour = "white" if label is None else tuple(value / 255 for value in class_colour(label))
    style = "--" if dashed else "-"
    for width, edge, dashes in ((3.0, "black", "-"), (1.6, colour, style)):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=width, ec=edge, ls=dashes))


def draw_heat(axes: Axes, image: Image.Image, values: np.ndarray, *, top: float | None = None):
    """Lay a map [h, w] of values from 0 to `top` (its maximum) over the image; more value, more colour."""
    show_image(axes, image, faded=True)
    top = float(values.max()) if top is None else top
    share = np.clip(values / max(top, 1e-12), 0, 1)
    return axes.imshow(
        values,
        extent=(0, 1, 1, 0),
        aspect=image.height / image.width,
        cmap="inferno",
        vmin=0,
        vmax=max(top, 1e-12),
        alpha=0.25 + 0.65 * share**0.5,
        interpolation="bilinear",
    )


def readable(name: str) -> str:
    """The name of a term in words."""
    return name.replace("side_directed", "side-directed").replace("_", " ").replace("gaussian", "Gaussian")


def headline(name: str) -> str:
    """The same with a capital."""
    words = readable(name)
    return words[0].upper() + words[1:]
