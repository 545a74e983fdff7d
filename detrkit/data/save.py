"""Writing a clean copy of a data set: boxes as training sees them, no faulty ones, images linked or copied."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from detrkit.data.decode import turned_upright
from detrkit.data.file_dataset import FileDataset
from detrkit.data.records import clip_boxes
from detrkit.errors import UserError
from detrkit.writing import write_text

Without = Mapping[str, Collection[int | str | None]]
"""of each split, the ids, as its files have them, of images that are not copied"""
NOTHING: Without = MappingProxyType({})


def save_coco(
    splits: Mapping[str, FileDataset],
    out: Path,
    advance: Callable[[], None] = lambda: None,
    without: Without = NOTHING,
) -> None:
    """Writes ``annotations/instances_<split>.json`` and ``<split>/``; ids of images and categories stay."""
    for split, dataset in splits.items():
        records = dataset.records
        annotations, images = [], []
        for index, name in _placed(dataset, out / split, advance, without.get(split, ())):
            image_id, (height, width) = records.given_id(dataset.image_id(index)), records.sizes[index].tolist()
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            rows = records.of_image(index)
            boxes = clip_boxes(records.boxes[rows], records.sizes[index])
            boxes[:, 2:] -= boxes[:, :2]
            for row, box in zip(range(rows.start, rows.stop), boxes.tolist(), strict=True):
                annotations.append(
                    {
                        "id": int(records.annotation_ids[row]),
                        "image_id": image_id,
                        "category_id": int(records.category_ids[row]),
                        "bbox": box,
                        "area": float(records.areas[row]),
                        "iscrowd": int(records.crowd[row]),
                    }
                )
        categories = [{"id": category.id, "name": category.name} for category in dataset.real_categories]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(out / "annotations" / f"instances_{split}.json", json.dumps(content, ensure_ascii=False))


def save_yolo(
    splits: Mapping[str, FileDataset],
    out: Path,
    advance: Callable[[], None] = lambda: None,
    without: Without = NOTHING,
) -> None:
    """Writes ``data.yaml``, ``images/<split>/`` and ``labels/<split>/``; crowd regions, unknown there, are left out.

    Boxes are for images turned upright by their EXIF orientation, as whoever reads this format turns them.
    """
    names: list[str] = []
    for split, dataset in splits.items():
        names = [category.name for category in dataset.real_categories]
        number_of = {category.id: number for number, category in enumerate(dataset.real_categories)}
        for index, name in _placed(dataset, out / "images" / split, advance, without.get(split, ())):
            boxes, category_ids = dataset.records.training_boxes(index)
            height, width = dataset.records.sizes[index].tolist()
            path = dataset.image_path(index)
            boxes, (height, width) = turned_upright(boxes, path, (height, width), exif=dataset.exif)
            lines = []
            for (x0, y0, x1, y1), category_id in zip(boxes.tolist(), category_ids.tolist(), strict=True):
                numbers = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
                lines.append(f"{number_of[category_id]} " + " ".join(f"{number:.8f}" for number in numbers) + "\n")
            write_text(out / "labels" / split / Path(name).with_suffix(".txt"), "".join(lines))
    said = {"path": ".", **{split: f"images/{split}" for split in splits}, "names": dict(enumerate(names))}
    write_text(out / "data.yaml", yaml.safe_dump(said, sort_keys=False, allow_unicode=True))


def _placed(
    dataset: FileDataset, folder: Path, advance: Callable[[], None], without: Collection[int | str | None]
) -> Iterator[tuple[int, str]]:
    """Puts each image that is there into the folder, and gives its index and its new name there."""
    missing = {image_id for image_id, _ in dataset.missing_files}
    taken: set[str] = set()
    for index in range(len(dataset)):
        advance()
        if dataset.image_id(index) in missing or dataset.records.given_id(dataset.image_id(index)) in without:
            continue
        source = dataset.image_path(index)
        name = source.name if source.stem not in taken else f"{source.stem}_{dataset.image_id(index)}{source.suffix}"
        taken.add(Path(name).stem)
        target = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise UserError(f"{target} is there already; name a folder for --out that is new or empty")
        try:
            os.link(source.resolve(), target)
        except OSError:  # another disk, or one that has no links
            shutil.copyfile(source, target)
        yield index, name


FORMATS = {"coco": save_coco, "yolo": save_yolo}
