"""Image files to pixels: the one place that knows how. Pillow now; another decoder would go here."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from detrkit.errors import DataError

_EXIF_ORIENTATION = 0x0112
_MIRRORED = {2, 3, 4}  # orientations that keep height and width
_TURNED = {5, 6, 7, 8}  # orientations that swap height and width

Exif = Literal["upright", "stored"]

# From half of the size at which it refuses, Pillow warns, without the file's name: nothing that one can act on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class WrongSizeError(DataError):
    """An image has another size than its annotations were made for."""


def decode(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    *,
    exif: Exif = "upright",
    wanted: tuple[int, int] | None = None,
) -> Image.Image:
    """Read an image file as 8-bit RGB, turned upright by its EXIF orientation or as it is stored.

    Greyscale, palette and CMYK are converted, transparent pixels are laid over white, 16-bit values are
    scaled to 8. ``size`` (height, width) is what the annotations were made for: where only one of the
    upright and the stored image has it, that one is meant, whatever ``exif`` says. TIFF files
    are always upright: Pillow turns them itself. ``wanted`` (height, width), given beside ``size``, is what the image
    will be resized to: a JPEG file at least twice as high and wide is decoded at a half, a quarter or an eighth and
    comes out in that size; any other comes out whole. Raises ``DataError``, naming the file, where it is missing,
    broken or cut short, or has another size.
    """
    try:
        _require_file(path)
        with Image.open(path) as file:
            if size is not None and wanted is not None:
                small = _decode_smaller(file, size, exif, wanted)
                if small is not None:
                    return to_rgb(small)
            file.load()
            upright = ImageOps.exif_transpose(file)
            views = [upright, file] if exif == "upright" else [file, upright]
            fitting = [view for view in views if size is None or (view.height, view.width) == tuple(size)]
            if size is not None and not fitting:
                raise WrongSizeError(
                    f"{path}: is {views[0].width} x {views[0].height} pixels, "
                    f"but its annotations are for {size[1]} x {size[0]}"
                )
            return to_rgb(fitting[0])
    except Exception as error:
        raise _named(error, path) from error


def open_to_rgb(image: Image.Image) -> Image.Image:
    """An image that is open already as ``decode`` gives it; ``DataError`` where the file that it reads is broken."""
    try:
        if not all(image.size):  # of a crop beside the image, say
            raise DataError(f"{name_of(image)}: has no pixels, being {image.width} x {image.height}")
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise _named(error, name_of(image)) from error


def name_of(image: Image.Image) -> str:
    """What an image that is open already is called in messages: its file, where it has one."""
    return os.fsdecode(getattr(image, "filename", "") or "an image in memory")


def _decode_smaller(
    file: Image.Image, size: tuple[int, int], exif: Exif, wanted: tuple[int, int]
) -> Image.Image | None:
    """A JPEG image of ``size``, decoded with fewer pixels and resized to ``wanted``; None where that cannot be."""
    if file.format not in ("JPEG", "MPO"):
        return None
    stored = (file.height, file.width)
    turned = _orientation(file) in _TURNED
    views = {"upright": stored[::-1] if turned else stored, "stored": stored}
    fits = {view for view, shape in views.items() if shape == tuple(size)}
    if not fits:
        return None
    upright = exif in fits if exif == "upright" else exif not in fits
    target = wanted[::-1] if upright and turned else wanted
    drafted = file.draft("", (target[1], target[0]))
    if drafted is None or (file.height, file.width) == stored:
        return None
    # The last column and row may stand for less than a whole pixel of the smaller image: the box leaves that out.
    small = file.resize((target[1], target[0]), Image.Resampling.BILINEAR, box=drafted[1])
    return ImageOps.exif_transpose(small) if upright else small


def stored_size(path: Path, *, exif: Exif = "upright") -> tuple[int, int]:
    """(height, width) of an image as ``decode`` gives it, from its header only; ``DataError`` likewise."""
    try:
        _require_file(path)
        with Image.open(path) as file:
            turned = exif == "upright" and _orientation(file) in _TURNED
            return (file.width, file.height) if turned else (file.height, file.width)
    except Exception as error:
        raise _named(error, path) from error


def _require_file(path: str | os.PathLike[str]) -> None:
    """Raise DataError for a pipe or a device, which might be read for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: is no file but a folder, a pipe or a device")


def turned_upright(
    corners: np.ndarray, path: Path, size: tuple[int, int], *, exif: Exif = "upright"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Boxes of an image as it is upright by its EXIF orientation, and its (height, width) there.

    Args:
        corners: boxes [T, 4] (x1, y1, x2, y2) of the image as `decode` gives it for ``size`` and ``exif``
    """
    try:
        with Image.open(path) as file:
            orientation, stored = _orientation(file), (file.height, file.width)
    except Exception:  # a broken file is told of by whoever reads it whole
        return corners, size
    upright = stored[::-1] if orientation in _TURNED else stored
    as_stored = size == stored and (exif == "stored" or size != upright)
    if not as_stored or orientation not in _MIRRORED | _TURNED:
        return corners, size
    x, y = corners[:, 0::2], corners[:, 1::2]
    x, y = (y, x) if orientation in _TURNED else (x, y)
    x = upright[1] - x[:, ::-1] if orientation in (2, 3, 6, 7) else x
    y = upright[0] - y[:, ::-1] if orientation in (3, 4, 7, 8) else y
    return np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1), upright


def open_orientation(path: Path) -> int | None:
    """The EXIF orientation of an image that is as large upright as stored; None where there is nothing to turn.

    Of such an image the size in its annotations does not tell for which of the two they were made.
    """
    with Image.open(path) as file:
        orientation = _orientation(file)
        same = orientation in _MIRRORED or (orientation in _TURNED and file.width == file.height)
        return orientation if same else None


def _orientation(file: Image.Image) -> int | None:
    # Pillow turns TIFF files itself, their size in the header included, and leaves nothing to do.
    return None if file.format == "TIFF" else file.getexif().get(_EXIF_ORIENTATION)


def _named(error: Exception, path: str | os.PathLike[str]) -> DataError:
    """What went wrong with an image file; a broken one raises nearly anything from Pillow's format plug-ins."""
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such image file")
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        return DataError(
            f"{path}: has more than {limit} million pixels; make it smaller, or cut it into several images"
        )
    return DataError(f"{path}: cannot be read as an image: {error or type(error).__name__}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB (see ``decode``).

    One of 32 bits or of floats keeps the scale 0..1 (floats), 0..255 or 0..65535 that it fits in, else its range is
    stretched.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretch(np.asarray(image, dtype=np.float64), is_float=image.mode == "F")).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _stretch(values: np.ndarray, *, is_float: bool) -> np.ndarray:
    """Values of unknown range as 0..255.

    Pillow opens some 16-bit files as 32-bit: 0..65535 keeps that scale. Floats up to 1 are shares of white.
    """
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(most for most in (1.0 if is_float else 255.0, 255.0, 65535.0) if high <= most)
    return ((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
