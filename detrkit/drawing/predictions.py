"""Pictures of detections: boxes, names and scores, salient points, and the truth beside them.

Boxes are (x1, y1, x2, y2) and points (x, y), both in pixels of the image that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from detrkit.drawing.labels import INK, Box, Colour, class_colour, fitted, font_of, text_height, write_names

SMALLEST = 512  # pixels of the longer side that an image is at least drawn at: labels need room
PAPER = (250, 250, 250)


def draw_predictions(
    image: Image.Image,
    prediction: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    truth: Mapping[str, Tensor] | None = None,
    threshold: float = 0.3,
    points: bool = False,
    caption: str = "",
) -> Image.Image:
    """The image with its detections; with ``truth``, two panels: the truth, dashed, then the detections.

    An image whose longer side is under 512 pixels is enlarged to that, so that names can be read.

    Args:
        image: RGB
        prediction: scores [k], labels [k], boxes [k, 4] in pixels, and perhaps points [k, 2] in pixels: what
            ``detector.detect`` gives for one image
        names: the name of each label; a label beyond them is drawn as its number
        truth: labels [T], boxes [T, 4] in pixels
        threshold: detections with a lower score are not drawn
        points: mark the salient points, with fine lines to the sides of their boxes, where there are any
        caption: a line above the picture
    """
    shown = (prediction["scores"] >= threshold).nonzero()[:, 0].tolist()
    salient = prediction.get("points") if points else None
    found = [
        _Item(
            box=_box(prediction["boxes"][i]),
            label=int(prediction["labels"][i]),
            text=f"{_name(names, prediction['labels'][i])} {float(prediction['scores'][i]):.2f}",
            point=None if salient is None else _point(salient[i]),
        )
        for i in sorted(shown, key=lambda i: -float(prediction["scores"][i]))
        if bool(torch.isfinite(prediction["boxes"][i]).all())
    ]
    canvas, scale = _enlarged(image)
    height = text_height(canvas.size)
    if truth is None:
        panel = _draw(canvas, found, scale)
        return _with_caption(panel, caption, height) if caption else panel
    true = [
        _Item(box=_box(box), label=int(label), text=_name(names, label))
        for box, label in zip(truth["boxes"], truth["labels"], strict=True)
        if bool(torch.isfinite(box).all())
    ]
    left = _with_caption(_draw(canvas.copy(), true, scale, dashed=True), f"truth: {len(true)}", height)
    right = _with_caption(_draw(canvas, found, scale), f"detections from {round(threshold, 3):g}: {len(found)}", height)
    both = _together([left, right], gap=max(4, left.width // 100), stacked=canvas.width > 2 * canvas.height)
    return _with_caption(both, caption, height) if caption else both


def image_of(normalised: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """The picture that a tensor [3, H, W] was made from by (x - mean) / std, x in 0..1."""
    shape = (3, 1, 1)
    restored = normalised.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    pixels = (restored.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)  # [H, W, 3]
    return Image.fromarray(pixels.numpy(), "RGB")


@dataclass(frozen=True)
class _Item:
    """A box to be drawn, with its label, its text and perhaps its point, in pixels of the original image."""

    box: Box
    label: int
    text: str
    point: tuple[float, float] | None = None


def _draw(canvas: Image.Image, items: Sequence[_Item], scale: float, *, dashed: bool = False) -> Image.Image:
    """Draw onto ``canvas``, which shows the original image at ``scale``; the first item ends up on top."""
    draw = ImageDraw.Draw(canvas)
    thickest = max(3, round(math.sqrt(canvas.width * canvas.height) / 200))
    boxes = [_clipped([value * scale for value in item.box], canvas.size) for item in items]
    for item, box in reversed(list(zip(items, boxes, strict=True))):
        # A thick frame would hide a small object.
        line = max(1, min(thickest, round(min(box[2] - box[0], box[3] - box[1]) / 8)))
        colour = class_colour(item.label)
        _outline(draw, box, colour, line, dashed=dashed)
        if item.point is not None and all(math.isfinite(value) for value in item.point):
            spot = [value * scale for value in item.point]
            _mark_point(draw, _clipped(spot * 2, canvas.size)[:2], box, colour, line)
    write_names(draw, canvas.size, [item.text for item in items], [item.label for item in items], boxes)
    return canvas


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, line: int, *, dashed: bool) -> None:
    """A coloured frame between two dark hairlines, which keep it visible on bright ground."""
    x1, y1, x2, y2 = (round(value) for value in box)
    if not dashed:
        rim = max(1, line // 3)
        draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline=INK, width=line + 2 * rim)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        return
    for edge in ((x1, y1, x2, y1), (x1, y2, x2, y2), (x1, y1, x1, y2), (x2, y1, x2, y2)):
        _dashed_line(draw, edge, colour, line, on=5 * line, off=3 * line)


def _dashed_line(draw: ImageDraw.ImageDraw, ends: Box, colour: Colour, line: int, *, on: int, off: int) -> None:
    """A horizontal or vertical line of dashes, ``on`` pixels long and ``off`` apart, each with a dark rim."""
    ax, ay, bx, by = (round(value) for value in ends)
    length = max(abs(bx - ax), abs(by - ay))
    across, down = np.sign(bx - ax), np.sign(by - ay)
    for start in range(0, max(length, 1), on + off):
        stop = min(start + on, length)
        dash = [(ax + across * at, ay + down * at) for at in (start, stop)]
        draw.line(dash, fill=INK, width=line + 2)
        draw.line(dash, fill=colour, width=line)


def _mark_point(draw: ImageDraw.ImageDraw, point: tuple[float, float], box: Box, colour: Colour, line: int) -> None:
    """A dot with a dark and a white ring, and dotted lines from it to the four sides of the box."""
    x, y = point
    x1, y1, x2, y2 = box
    fine = (line + 1) // 2
    for end in ((x1, y), (x2, y), (x, y1), (x, y2)):
        _dashed_line(draw, (x, y, *end), colour, fine, on=2 * fine, off=2 * fine + 3)
    for radius, fill in ((2.4 * line, INK), (1.9 * line, (255, 255, 255)), (1.3 * line, colour)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _with_caption(picture: Image.Image, text: str, height: int) -> Image.Image:
    font = font_of(height, text)
    strip = sum(font.getmetrics()) + 8
    result = Image.new("RGB", (picture.width, picture.height + strip), PAPER)
    result.paste(picture, (0, strip))
    text = fitted(text, font, picture.width - 12)
    ImageDraw.Draw(result).text((6, strip / 2), text, font=font, fill=INK, anchor="lm")
    return result


def _together(panels: Sequence[Image.Image], gap: int, *, stacked: bool) -> Image.Image:
    """Panels of one size beside each other, or below: of two wide ones in a row little is left on a page."""
    width, height = panels[0].size
    across, down = (0, height + gap) if stacked else (width + gap, 0)
    last = len(panels) - 1
    result = Image.new("RGB", (width + last * across, height + last * down), PAPER)
    for at, panel in enumerate(panels):
        result.paste(panel, (at * across, at * down))
    return result


def _enlarged(image: Image.Image) -> tuple[Image.Image, float]:
    """A copy of at least ``SMALLEST`` pixels on its longer side, and how much larger it is."""
    scale = max(1.0, SMALLEST / max(image.size))
    image = image.convert("RGB")
    if scale == 1.0:
        return image.copy(), 1.0
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC), scale


def _clipped(box: Sequence[float], size: tuple[int, int]) -> Box:
    """The box inside the picture; one that lies beyond it becomes a line at the edge, so that it is seen."""
    (x1, x2), (y1, y2) = (sorted(box[0::2]), sorted(box[1::2]))
    right, bottom = size[0] - 1, size[1] - 1

    def within(value: float, limit: float) -> float:
        return min(max(value, 0), limit)

    return within(x1, right), within(y1, bottom), within(x2, right), within(y2, bottom)


def _box(values: Tensor) -> Box:
    x1, y1, x2, y2 = values.tolist()
    return x1, y1, x2, y2


def _point(values: Tensor) -> tuple[float, float]:
    x, y = values.tolist()
    return x, y


def _name(names: Sequence[str], label: Tensor) -> str:
    return str(names[int(label)]) if 0 <= int(label) < len(names) else f"class {int(label)}"
