"""Writes a data set in the formats that people have: splits by name, {"train": dataset, "val": dataset}, into a folder.

Shared by the tests and `benchmarks/own_data.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detrkit.data.dataset import Dataset
from detrkit.data.save import save_coco, save_yolo


def write_voc(splits, out):
    """Pascal VOC's three folders; boxes are not rounded, as they are by its own tools."""
    for split, dataset in splits.items():
        names = {category.id: category.name for category in dataset.real_categories}
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        stems = []
        for index in range(len(dataset)):
            source, rows = dataset.image_path(index), dataset.records.of_image(index)
            shutil.copy(source, out / "JPEGImages" / source.name)
            height, width = dataset.records.sizes[index].tolist()
            objects = ""
            for (x, y, w, h), number in zip(
                dataset.records.boxes[rows].tolist(), dataset.records.category_ids[rows].tolist(), strict=True
            ):
                objects += (
                    f"<object><name>{names[number]}</name><difficult>0</difficult><bndbox><xmin>{x!r}</xmin>"
                    f"<ymin>{y!r}</ymin><xmax>{x + w!r}</xmax><ymax>{y + h!r}</ymax></bndbox></object>"
                )
            (out / "Annotations" / f"{source.stem}.xml").write_text(
                f"<annotation><filename>{source.name}</filename><size><width>{width}</width><height>{height}</height>"
                f"<depth>3</depth></size>{objects}</annotation>"
            )
            stems.append(source.stem)
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def write_labelme(splits, out):
    """A folder for each split, a JSON file beside each image; rectangles from any corner to the opposite one."""
    for split, dataset in splits.items():
        names = {category.id: category.name for category in dataset.real_categories}
        (out / split).mkdir(parents=True)
        for index in range(len(dataset)):
            source, rows = dataset.image_path(index), dataset.records.of_image(index)
            shutil.copy(source, out / split / source.name)
            height, width = dataset.records.sizes[index].tolist()
            shapes = [
                {
                    "label": names[number],
                    "points": [[x + w, y], [x, y + h]] if place % 2 else [[x, y], [x + w, y + h]],
                    "group_id": None,
                    "shape_type": "rectangle",
                    "flags": {},
                }
                for place, ((x, y, w, h), number) in enumerate(
                    zip(dataset.records.boxes[rows].tolist(), dataset.records.category_ids[rows].tolist(), strict=True)
                )
            ]
            content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": source.name, "imageData": None}
            sides = {"imageHeight": height, "imageWidth": width}
            (out / split / f"{source.stem}.json").write_text(json.dumps({**content, **sides}))


def write_roboflow(splits, out):
    """COCO's format as Roboflow exports it: a folder for each split, its JSON among the images."""
    for split, dataset in splits.items():
        folder = out / {"train": "train", "val": "valid"}[split]
        save_coco({"x": dataset}, out / "t")
        (out / "t" / "x").rename(folder)
        (out / "t" / "annotations" / "instances_x.json").rename(folder / "_annotations.coco.json")


def write_whole(splits, out):
    """One JSON, all images in one folder, no split."""
    (out / "photos").mkdir(parents=True)
    images, annotations = [], []
    for number, dataset in enumerate(splits.values()):
        for index in range(len(dataset)):
            source, rows = dataset.image_path(index), dataset.records.of_image(index)
            shutil.copy(source, out / "photos" / source.name)
            height, width = dataset.records.sizes[index].tolist()
            image_id = 1000 * number + index
            images.append({"id": image_id, "file_name": source.name, "height": height, "width": width})
            for row in range(rows.start, rows.stop):
                box, category = dataset.records.boxes[row].tolist(), int(dataset.records.category_ids[row])
                about = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
                annotations.append({**about, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": c.id, "name": c.name} for c in dataset.real_categories]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "labels.json").write_text(json.dumps(content))


WRITERS: dict[str, Callable[[dict[str, Dataset], Path], Any]] = {
    "yolo": save_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
    "roboflow": write_roboflow,
    "coco": save_coco,
    "whole": write_whole,
}
