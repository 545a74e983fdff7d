"""Small data sets written to disk, and parts built without a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data.coco import read_coco
from detrkit.data.coco_source import CocoSource
from detrkit.data.shapes import ShapesSource
from detrkit.data.transforms import DetrAugment, FlipAugment, NoAugment
from detrkit.recipe import Factory


def part(build, **options):
    return Factory(slot="augment", name="test", options=options, parts={}, build=build)


def shapes(**options):
    return ShapesSource(augment=part(FlipAugment), **options)


def coco(root, **options):
    return CocoSource(root=str(root), augment=part(NoAugment), **options)


def small_detr():
    return part(DetrAugment, scales=(48, 64), max_size=90, crop_scales=(50,), crop_min=24, crop_max=40, eval_size=48)


def image_entry(image_id: int, *, name: str | None = None, height: int = 40, width: int = 60) -> dict:
    return {"id": image_id, "file_name": name or f"{image_id}.png", "height": height, "width": width}


def box_entry(annotation_id: int, image_id: int, box: list, *, category: int = 3, **more) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": category, "bbox": box, **more}


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]

# What a camera held otherwise would have stored; the viewer has to undo it.
UNDO = {
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.fixture
def write_set(tmp_path):
    """Writes a data set with both splits alike, and gives its folder."""

    def write(images: list, annotations: list, categories: list = CATEGORIES) -> Path:
        (tmp_path / "annotations").mkdir()
        content = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            (tmp_path / split).mkdir()
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(content)
            for entry in images:
                pixels = rng.integers(0, 256, (entry.get("height", 40), entry.get("width", 60), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / entry["file_name"])
        return tmp_path

    return write


def read(path, images=(), annotations=(), categories=tuple(CATEGORIES)):
    """What `read_coco` makes of an annotation file with these tables."""
    file = path / "a.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(file, path)


@pytest.fixture
def small_set(tmp_path):
    """A COCO set of six images in each split, of other names, sizes and objects."""
    rng = np.random.default_rng(3)
    root = tmp_path / "set"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        images, boxes = [], []
        for number in range(1, 7):
            height, width = 30 + 3 * number, 50 + number
            name = f"{split}_{number}.png"
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(root / split / name)
            images.append(image_entry(10 * number, name=name, height=height, width=width))
            for _ in range(number - 1):
                box = [
                    float(v) for v in (rng.uniform(0, 30), rng.uniform(0, 20), rng.uniform(2, 12), rng.uniform(2, 12))
                ]
                boxes.append(box_entry(len(boxes) + 1, 10 * number, box, category=int(rng.choice([3, 7]))))
        content = {
            "images": images,
            "annotations": boxes,
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
