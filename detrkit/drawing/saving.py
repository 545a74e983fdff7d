"""Pictures as files, written whole."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from detrkit.writing import write_bytes

QUALITY = 92


def picture_bytes(picture: Image.Image, form: str, *, quality: int = QUALITY) -> bytes:
    """A picture as the content of a file; form: "PNG" or "JPEG", the latter with a quality of 1 to 95."""
    buffer = io.BytesIO()
    picture.save(buffer, format=form, quality=quality)
    return buffer.getvalue()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG or, by any other ending, a JPEG.

    Pillow by itself hands its encoder the file, and does not notice what a full disk no longer takes.
    """
    write_bytes(path, picture_bytes(picture, "PNG" if path.suffix.lower() == ".png" else "JPEG"))
