"""Data sets as labelling tools export them: layouts of the same files that `formats` writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detrkit.data.dataset import Dataset
from detrkit.data.save import save_coco, save_yolo

from .formats import write_labelme, write_voc, write_whole


def cvat_coco(splits, out):
    """CVAT's COCO of a project whose subsets are called Train and Validation."""
    save_coco(splits, out)
    (out / "images").mkdir()
    for split, name in (("train", "Train"), ("val", "Validation")):
        (out / split).rename(out / "images" / name)
        (out / f"annotations/instances_{split}.json").rename(out / f"annotations/instances_{name}.json")


def fiftyone_coco(splits, out):
    save_coco(splits, out / "t")
    for split, name in (("train", "train"), ("val", "validation")):
        (out / name).mkdir()
        (out / "t" / split).rename(out / name / "data")
        (out / f"t/annotations/instances_{split}.json").rename(out / name / "labels.json")


def cvat_darknet(splits, out):
    """CVAT's YOLO 1.1: lists that begin with a folder of its own."""
    save_yolo(splits, out)
    (out / "data.yaml").unlink()
    (out / "obj.names").write_text("cat\ndog\n")
    (out / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
    )
    for split, name in (("train", "train"), ("val", "valid")):
        folder = out / f"obj_{name}_data"
        (out / "images" / split).rename(folder)
        (out / f"{name}.txt").write_text("".join(f"data/{folder.name}/{path.name}\n" for path in folder.iterdir()))
        for path in (out / "labels" / split).iterdir():
            path.rename(folder / path.name)
    shutil.rmtree(out / "images")
    shutil.rmtree(out / "labels")


def roboflow_darknet(splits, out):
    """A list of classes, images and labels in a folder for each split."""
    cvat_darknet(splits, out)
    (out / "obj.data").unlink()
    for name in ("train", "valid"):
        (out / f"obj_{name}_data").rename(out / name)
        (out / name / "_darknet.labels").write_text("cat\ndog")
    (out / "obj.names").unlink()


def classes_and_splits(splits, out):
    save_yolo(splits, out)
    (out / "data.yaml").unlink()
    (out / "classes.txt").write_text("cat\ndog\n")


def roboflow_voc(splits, out):
    """XML files beside their images, in a folder for each split."""
    for split, name in (("train", "train"), ("val", "valid")):
        write_voc({split: splits[split]}, out / "t" / name)
        beside(out / "t" / name, out / name)


def voc_of_two_trees(splits, out):
    """A folder for each split among the annotations, and among the images."""
    for split, dataset in splits.items():
        write_voc({split: dataset}, out / "t" / split)
        for folder, name in (("Annotations", "annotations"), ("JPEGImages", "images")):
            (out / name).mkdir(exist_ok=True)
            (out / "t" / split / folder).rename(out / name / split)


def beside(voc: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for folder in ("Annotations", "JPEGImages"):
        for path in (voc / folder).iterdir():
            path.rename(out / path.name)


def cvat_coco_default(splits, out):
    write_whole(splits, out)
    for folder in ("annotations", "images"):
        (out / folder).mkdir()
    (out / "labels.json").rename(out / "annotations/instances_default.json")
    (out / "photos").rename(out / "images/default")


def label_studio_yolo(splits, out):
    classes_and_splits(splits, out)
    for folder in ("images", "labels"):
        for split in ("train", "val"):
            for path in (out / folder / split).iterdir():
                path.rename(out / folder / path.name)
            (out / folder / split).rmdir()
    (out / "notes.json").write_text('{"categories": [], "info": {}}')


def labelimg_yolo(splits, out):
    label_studio_yolo(splits, out / "t")
    for path in [*(out / "t").rglob("*.png"), *(out / "t").rglob("*.txt")]:
        path.rename(out / path.name)


def labelimg_voc(splits, out):
    write_voc(splits, out / "t")
    beside(out / "t", out)


def labelme_flat(splits, out):
    write_labelme(splits, out / "t")
    for path in [*(out / "t").rglob("*.png"), *(out / "t").rglob("*.json")]:
        path.rename(out / path.name)


def labelme_of_two_folders(splits, out):
    """Windows wrote the paths from the annotations to the images."""
    labelme_flat(splits, out)
    for folder, ending in (("images", "png"), ("labels", "json")):
        (out / folder).mkdir()
        for path in out.glob(f"*.{ending}"):
            path.rename(out / folder / path.name)
    for path in (out / "labels").iterdir():
        path.write_text(path.read_text().replace('"imagePath": "', r'"imagePath": "..\\images\\'))


def plain_voc(splits, out):
    """Without a list of a split, and with names in small letters, as sets for download often are."""
    write_voc(splits, out / "t")
    (out / "t" / "Annotations").rename(out / "annotations")
    (out / "t" / "JPEGImages").rename(out / "images")


Export = Callable[[dict[str, Dataset], Path], Any]
SPLIT: list[Export] = [
    cvat_coco,
    fiftyone_coco,
    cvat_darknet,
    roboflow_darknet,
    classes_and_splits,
    roboflow_voc,
    voc_of_two_trees,
]
WHOLE: list[Export] = [
    cvat_coco_default,
    label_studio_yolo,
    labelimg_yolo,
    labelimg_voc,
    labelme_flat,
    labelme_of_two_folders,
    plain_voc,
]
