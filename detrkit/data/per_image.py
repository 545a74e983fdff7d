"""Annotations in a file for each image: names of images, which folders of them are a split, the images themselves."""

from __future__ import annotations

import os
from pathlib import Path

SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid", "test")}
"""what lists and folders of a split are called"""
ENDINGS = ("jpg", "jpeg", "png", "JPG", "JPEG", "PNG", "bmp", "tif", "webp")


def all_names(annotations: Path, ending: str) -> list[str]:
    """The names of all images that have an annotation, those in folders of a split too, sorted.

    Args:
        ending: of the annotations, such as "xml".
    """
    splits = [annotations / name for names in SPLITS.values() for name in names]
    return sorted(
        names_in(annotations, ending) + [name for split in splits for name in names_in(split, ending, split.name)]
    )


def names_in(place: Path, ending: str, before: str = "") -> list[str]:
    """The names of the images that have an annotation in a folder, sorted, after `before`."""
    return sorted(os.path.join(before, path.stem) for path in place.glob(f"*.{ending}"))


def split_folder(annotations: Path, split: str, ending: str) -> Path | None:
    """The folder with the annotations of a split; None without one."""
    folders = [annotations / name for name in SPLITS[split]]
    return next((path for path in folders if any(path.glob(f"*.{ending}"))), None)


def image_of_name(images: Path, name: str) -> str | None:
    """The file of an image below a folder, by its name without the ending; None where there is none."""
    return next((f"{name}.{ending}" for ending in ENDINGS if (images / f"{name}.{ending}").is_file()), None)
