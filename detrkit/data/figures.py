"""The figures of the built-in shapes data set: outlines, scenes of them, and their drawing.

A scene is laid out from front to back, so that what is visible of a figure is known, and final, the moment
it is placed; a figure that is nearly hidden is never drawn. Everything is drawn as masks at twice the
image's resolution, which gives boxes to half a pixel and smooth edges.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import reduce

import numpy as np
from PIL import Image, ImageDraw

FINE = 2  # mask pixels per image pixel
LEAST_VISIBLE = 0.3  # a figure of which less can be seen is left out of the scene
LEAST_PIXELS = 9.0  # and so is one of fewer visible pixels
COLOUR_STEP = 70.0  # least distance in RGB between a figure's colour and the ground's


def _arc(start: float, end: float, radius: float = 1.0, centre: float = 0.0, steps: int = 32) -> np.ndarray:
    angle = np.linspace(start, end, steps)
    return np.stack([centre + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _star(points: int, inner: float) -> np.ndarray:
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _cross(arm: float) -> np.ndarray:
    a = arm
    corners = [(1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a)]
    corners += [(-x, -y) for x, y in corners]
    return np.array(corners, dtype=np.float64)


def _crescent() -> np.ndarray:
    # Two arcs through the same two tips: the outer disc's far side and an inner one's, set off by 0.55.
    tip = np.arccos(0.55 / 2)
    inner = _arc(np.pi - tip, np.pi + tip, centre=0.55)[::-1]
    outline = np.concatenate([_arc(tip, 2 * np.pi - tip), inner])
    return outline + np.array([0.25, 0])


_CIRCLE = _arc(0, 2 * np.pi, steps=48)

# Outline [P, 2] in [-1, 1] and, for a figure with a hole, the hole's outline.
FIGURES: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "circle": (_CIRCLE, None),
    "square": (np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * 0.84, None),
    "triangle": (_arc(0, 2 * np.pi * 2 / 3, steps=3) * 1.1 - (0.1, 0), None),
    "star": (_star(5, 0.42) * 1.1, None),
    "ring": (_CIRCLE, _CIRCLE * 0.52),
    "cross": (_cross(0.3), None),
    "bar": (np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * 1.0, None),
    "crescent": (_crescent() * 1.1, None),
}


@dataclass(frozen=True)
class Layout:
    """How scenes are laid out.

    ``sides`` is the range of an image's height and of its width in pixels, the two alike where it is
    ``square``; ``objects`` the range of the number of figures tried, ``sizes`` the range of a figure's diameter
    as a share of the image's shorter side, drawn log-uniformly: from its lower half with probability
    ``small_fraction``, else from the upper half. ``touching`` is the share of figures that are put beside the
    one before, ``textured`` the share that have a texture rather than one colour. With ``hue_by_class`` a
    figure's hue tells its class; else colours tell nothing.
    """

    names: tuple[str, ...]
    sides: tuple[int, int]
    square: bool
    objects: tuple[int, int]
    sizes: tuple[float, float]
    small_fraction: float
    touching: float
    textured: float
    hue_by_class: bool


@dataclass(frozen=True)
class Figure:
    """A figure as it is seen. ``mask`` [h, w] bool is its visible part on the fine grid, from ``corner``."""

    label: int
    corner: tuple[int, int]  # (x, y) of the mask's first pixel, fine grid
    mask: np.ndarray
    textured: bool
    hue: float | None  # in [0, 1), None for any colour

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The visible part's (x, y, w, h) in image pixels."""
        height, width = self.mask.shape
        return self.corner[0] / FINE, self.corner[1] / FINE, width / FINE, height / FINE

    @property
    def area(self) -> float:
        """The visible part in square image pixels."""
        return float(np.count_nonzero(self.mask)) / FINE**2


@dataclass(frozen=True)
class Scene:
    """A scene of ``figures``, front to back; none hides what counts as visible of another."""

    height: int
    width: int
    figures: tuple[Figure, ...]


def lay_out(layout: Layout, rng: np.random.Generator) -> Scene:
    """Place figures from front to back."""
    low, high = layout.sides
    height = int(rng.integers(low, high + 1))
    width = height if layout.square else int(rng.integers(low, high + 1))
    taken = np.zeros((height * FINE, width * FINE), dtype=bool)
    figures: list[Figure] = []
    near: tuple[np.ndarray, float] | None = None
    for _ in range(int(rng.integers(layout.objects[0], layout.objects[1] + 1))):
        label = int(rng.integers(len(layout.names)))
        radius = _diameter(layout, rng) * min(height, width) * FINE / 2
        if near is not None and rng.random() < layout.touching:
            # Beside the last one, about touching it, so that occlusion is common and not an accident.
            angle = rng.random() * 2 * np.pi
            reach = (near[1] + radius) * rng.uniform(0.4, 1.0)
            centre = near[0] + reach * np.array([np.cos(angle), np.sin(angle)])
        else:
            margin = 0.6 * radius  # some are cut by the image's edge, none by more than about half
            centre = rng.uniform(0, 1, 2) * (np.array([width, height]) * FINE - 2 * margin) + margin
        seen = _place(layout.names[label], centre, radius, taken, rng)
        textured = rng.random() < layout.textured
        hue = (label + rng.uniform(-0.25, 0.25)) / len(layout.names) % 1 if layout.hue_by_class else None
        if seen is not None:
            figures.append(Figure(label, *seen, textured, hue))
            near = (centre, radius)
    return Scene(height, width, tuple(figures))


def _diameter(layout: Layout, rng: np.random.Generator) -> float:
    low, high = np.log(layout.sizes)
    half = (rng.random() + (rng.random() >= layout.small_fraction)) / 2
    return float(np.exp(low + half * (high - low)))


def _place(
    name: str, centre: np.ndarray, radius: float, taken: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[int, int], np.ndarray] | None:
    """Draw a figure's mask behind what is ``taken``, and take its place: its corner and visible part.

    None where too little is seen.
    """
    outline, hole = FIGURES[name]
    if name == "bar":
        slender = rng.uniform(5, 12)
        stretch = np.array([1.4, max(1.4 / slender, 1.6 * FINE / radius)]) * radius
    else:
        stretch = radius * np.exp(rng.uniform(-0.22, 0.22) * np.array([1, -1]))
    angle = rng.random() * 2 * np.pi
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = (outline * stretch) @ turn + centre

    low = np.maximum(np.floor(points.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 1, taken.shape[::-1])
    if (high <= low).any():
        return None
    canvas = Image.new("L", tuple((high - low).tolist()))
    pen = ImageDraw.Draw(canvas)
    pen.polygon((points - low).ravel().tolist(), fill=1)
    if hole is not None:
        pen.polygon(((hole * stretch) @ turn + centre - low).ravel().tolist(), fill=0)
    whole = np.asarray(canvas).view(bool)

    region = taken[low[1] : high[1], low[0] : high[0]]
    seen = whole & ~region
    pixels = np.count_nonzero(seen)
    if pixels < LEAST_PIXELS * FINE**2 or pixels < LEAST_VISIBLE * np.count_nonzero(whole):
        return None
    region |= whole
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    mask = seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return (int(low[0] + columns[0]), int(low[1] + rows[0])), mask


def paint(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture of a scene: a textured ground, and figures on it; their textures tell nothing of their classes.

    Nor do their colours, unless the scene was laid out with ``hue_by_class``.
    """
    ground = rng.uniform(30, 225, 3)
    # [3, h, w] float32: numpy runs over long rows, many times faster than over three colours a pixel.
    picture = np.array(_texture(scene.height, scene.width, ground, rng))
    for figure in reversed(scene.figures):
        _paint_figure(picture, figure, _colour_beside(ground, figure.hue, rng), rng)
    grain = int(rng.integers(2, 14))
    picture += rng.integers(-grain, grain + 1, (scene.height, scene.width), dtype=np.int8)
    planes = np.clip(picture, 0, 255, out=picture).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def _paint_figure(picture: np.ndarray, figure: Figure, colour: np.ndarray, rng: np.random.Generator) -> None:
    x, y = figure.corner
    left, top = x // FINE, y // FINE
    # The mask padded to whole image pixels, then the share of each pixel that it covers.
    height = -(-(y + figure.mask.shape[0]) // FINE) - top
    width = -(-(x + figure.mask.shape[1]) // FINE) - left
    fine = np.zeros((height * FINE, width * FINE), dtype=np.uint8)
    fine[y - top * FINE :, x - left * FINE :][: figure.mask.shape[0], : figure.mask.shape[1]] = figure.mask
    count = reduce(np.add, [fine[i::FINE, j::FINE] for i in range(FINE) for j in range(FINE)])
    cover = count.astype(np.float32) * np.float32(1 / FINE**2)
    region = picture[:, top : top + height, left : left + width]
    if figure.textured:
        surface = _texture(height, width, colour, rng)
    else:
        surface = colour.astype(np.float32)[:, None, None]
    region += cover * (surface - region)


def _colour_beside(ground: np.ndarray, hue: float | None, rng: np.random.Generator) -> np.ndarray:
    """A random colour, of the hue where one is given, that stands out from the ground's if it can."""
    if hue is None:
        colours = rng.uniform(0, 255, (8, 3))
    else:
        pairs = rng.uniform((0.65, 0.5), (1.0, 1.0), (8, 2))  # saturation and value
        colours = np.array([hsv_to_rgb(hue, *pair) for pair in pairs]) * 255
    for colour in colours:
        if ((colour - ground) ** 2).sum() > COLOUR_STEP**2:
            return colour
    return colour if hue is not None else 255 - ground


def _texture(height: int, width: int, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patch [3, h, w] float32 around ``colour``: plain, graded, striped, chequered or cloudy."""
    kind = int(rng.integers(5))
    swing = rng.uniform(-45, 45, (3, 1, 1)).astype(np.float32)
    angle = rng.random() * np.pi
    across = np.float32(np.cos(angle)) * np.arange(width, dtype=np.float32)
    down = np.float32(np.sin(angle)) * np.arange(height, dtype=np.float32)[:, None]
    turns = np.float32(2 * np.pi / rng.uniform(5, 24))
    base = colour.astype(np.float32)[:, None, None]
    if kind == 0:
        return np.broadcast_to(base, (3, height, width))
    if kind == 1:
        wave = (down + across) * np.float32(2 / (height + width))
    elif kind == 2:
        wave = np.sign(np.sin((down + across) * turns))
    elif kind == 3:
        wave = np.sign(np.sin(down * turns)) * np.sign(np.sin(across * turns))
    else:
        rows, columns = rng.integers(3, 9, 2)
        cells = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
        cloud = cells.resize((width, height), Image.Resampling.BICUBIC)
        wave = np.asarray(cloud, dtype=np.float32) * np.float32(1 / 127.5) - 1
    return base + wave * swing
