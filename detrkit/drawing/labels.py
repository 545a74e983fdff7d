"""Names on pictures: the colour of a class, the font, and where a name hides least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import ImageDraw, ImageFont

from detrkit.wording import in_a_line

Box = tuple[float, float, float, float]  # (x1, y1, x2, y2) in pixels of the picture
Colour = tuple[int, int, int]

INK: Colour = (25, 25, 25)
DEJAVU = "DejaVuSans.ttf"
# Of Linux, Windows and macOS, for letters that DejaVu Sans has not.
OTHER_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "YuGothM.ttc",
    "Nirmala.ttf",
    "Nirmala.ttc",
    "leelawui.ttf",
    "seguisym.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Kohinoor.ttc",
    "Thonburi.ttc",
    "Arial Unicode.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "FreeSans.ttf",
    "unifont.otf",
)
NO_LETTER = "\U0010ffff"


def class_colour(label: int) -> Colour:
    """A colour for a class: neighbouring labels are far apart in hue, and lightness varies in three steps.

    The hue advances by the golden angle in OKLCh, a space in which equal steps look equal, so that few
    classes look alike; all are light enough to stand out against the dark rim that lines get.
    """
    hue = math.radians((29 + label * 137.50776) % 360)
    lightness = (0.74, 0.84, 0.64)[label % 3]
    return _oklch(lightness, 0.19, hue)


def write_names(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    texts: Sequence[str],
    labels: Sequence[int],
    boxes: Sequence[Box],
) -> None:
    """Name each box on a plate of its colour, where the plate hides least; the first items choose first."""
    height = text_height(size)
    if len(boxes) > 8:  # text much larger than most objects would hide them
        typical = float(np.median([math.sqrt((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in boxes]))
        height = max(10, min(height, round(typical / 3)))
    plates: list[Box] = []
    for text, label, box in zip(texts, labels, boxes, strict=True):
        font = font_of(height, text)
        text = fitted(text, font, size[0] - 8)
        plate = _best_place(font, text, box, size, plates, boxes)
        plates.append(plate)
        colour = class_colour(label)
        draw.rectangle(plate, fill=colour, outline=INK)
        middle = ((plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2)
        draw.text(middle, text, font=font, fill=_ink_on(colour), anchor="mm")


def _best_place(
    font: ImageFont.FreeTypeFont,
    text: str,
    box: Box,
    size: tuple[int, int],
    plates: Sequence[Box],
    boxes: Sequence[Box],
) -> Box:
    """Where a plate overlaps other plates least and hides the least share of any box (small ones count)."""
    width, height = math.ceil(font.getlength(text)) + 6, math.ceil(sum(font.getmetrics())) + 1
    x1, y1, x2, y2 = box
    places = (
        (x1, y1 - height - 1),  # above the box
        (x1, y2 + 1),  # below it
        (x2 - width, y1 - height - 1),
        (x2 - width, y2 + 1),
        (x1, y1),  # inside
        (x1, y2 - height),
        (x2 + 1, y1),  # beside it
        (x1 - width - 1, y1),
        (x2 + 1, y2 - height),
        (x1 - width - 1, y2 - height),
    )
    corners = np.clip(places, 0, np.maximum(0, (size[0] - width - 1, size[1] - height - 1))).round()
    candidates = np.concatenate([corners, corners + np.array([width, height])], axis=1)  # [places, 4]
    hidden = _overlap(candidates, plates).sum(1) / (width * height)
    hidden += (_overlap(candidates, boxes) / _area(np.asarray(boxes)).clip(min=1)).sum(1)
    # An early place is kept unless a later one is clearly better.
    best = min(range(len(places)), key=lambda at: (hidden[at] > hidden.min() + 0.02, at))
    x1, y1, x2, y2 = (int(value) for value in candidates[best])
    return x1, y1, x2, y2


def _overlap(one: np.ndarray, other: Sequence[Box]) -> np.ndarray:
    """Shared area of each of n boxes with each of m: [n, m]."""
    boxes = np.asarray(other, dtype=float).reshape(-1, 4)
    low = np.maximum(one[:, None, :2], boxes[None, :, :2])
    high = np.minimum(one[:, None, 2:], boxes[None, :, 2:])
    return (high - low).clip(min=0).prod(-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def text_height(size: tuple[int, int]) -> int:
    return max(12, round(math.sqrt(size[0] * size[1]) / 36))


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text in one line, its middle left out where it is longer than ``width``: the score at its end stays."""
    text = in_a_line(text)
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2:
        keep -= 1
        head, tail = text[: keep - min(keep // 2, 6)], text[len(text) - min(keep // 2, 6) :]
        if font.getlength(f"{head}…{tail}") <= width:
            return f"{head}…{tail}"
    return "…"


def _ink_on(colour: Colour) -> Colour:
    return INK if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else (255, 255, 255)


def font_of(height: int, text: str = "") -> ImageFont.FreeTypeFont:
    """A font for a text: DejaVu Sans, which has Greek, Cyrillic and more beside Latin, or one of the system's.

    That is taken where it has letters that DejaVu Sans has not (Chinese, Korean, ...), and all of the text's.
    """
    usual = _usual_font(height)
    if text.isascii() or _knows(usual, text):
        return usual
    there = (_system_font(name, height) for name in OTHER_FONTS)
    return next((font for font in there if font is not None and _knows(font, text)), usual)


def _knows(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether a font has all letters: it draws the same box for each that it has not."""
    unknown = bytes(font.getmask(NO_LETTER))
    return all(bytes(font.getmask(letter)) != unknown for letter in set(text) if not letter.isspace())


@lru_cache(maxsize=32)
def _usual_font(height: int) -> ImageFont.FreeTypeFont:
    """matplotlib brings DejaVu Sans along; it is not imported for that, which takes time."""
    package = find_spec("matplotlib")
    for place in (package.submodule_search_locations or ()) if package else ():
        file = Path(place) / "mpl-data" / "fonts" / "ttf" / DEJAVU
        if file.is_file():
            return ImageFont.truetype(str(file), height)
    font = _system_font(DEJAVU, height) or ImageFont.load_default(height)
    assert isinstance(font, ImageFont.FreeTypeFont)  # where a size is given
    return font


@lru_cache(maxsize=256)
def _system_font(name: str, height: int) -> ImageFont.FreeTypeFont | None:
    """The font of a file's name, which Pillow looks for where the system keeps fonts; None where it is not there."""
    try:
        return ImageFont.truetype(name, height)
    except OSError:
        return None


@lru_cache(maxsize=512)
def _oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """OKLCh to sRGB bytes (B. Ottosson, "A perceptual color space for image processing", 2020).

    Chroma is lowered until the colour exists in sRGB.
    """
    to_lms = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    while True:
        lab = np.array([lightness, chroma * math.cos(hue), chroma * math.sin(hue)])
        linear = to_rgb @ (to_lms @ lab) ** 3
        if chroma <= 0 or (linear.min() >= 0 and linear.max() <= 1):
            break
        chroma -= 0.01
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(float(value) * 255) for value in encoded)
    return red, green, blue
