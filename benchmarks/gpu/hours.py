"""How long 12 epochs of COCO would take on this card, by the steps that were measured."""

from __future__ import annotations

from gpu.record import Record
from gpu.setting import Setting

COCO_TRAIN, EPOCHS = 118_287, 12


def hours(setting: Setting, add) -> None:
    """Of each measured step. Images stood ready on the card: loading, evaluation and checkpoints are not in it."""
    steps = [line for line in Record(setting.folder).lines() if line["what"] == "training step"]
    for line in {line["name"]: line for line in steps if "images_per_second" in line}.values():
        took = COCO_TRAIN * EPOCHS / line["images_per_second"] / 3600
        add("hours", name=line["name"], hours=round(took, 2), without="loading, evaluation, checkpoints")
