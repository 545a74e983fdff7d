"""How long COCO's numbers take: pycocotools and faster-coco-eval on the same random detections, in turns.

Beside both stands what is left to do after the last batch where a process matches batches while the next are detected.

pip install 'detrkit[faster-eval]'
python benchmarks/evaluation.py --images 5000          # COCO's val2017, 300 detections an image, 80 classes
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import numpy as np
import torch
from pycocotools.coco import COCO

from detrkit.compare.timing import Ratio, milliseconds, take_turns
from detrkit.evaluation.coco_stats import PYCOCOTOOLS, Evaluator, coco_stats, fastest_evaluator
from detrkit.evaluation.scoring import Parts

CLASSES, OBJECTS, DETECTIONS = 80, 7, 300


def random_case(images: int) -> tuple[COCO, list[dict]]:
    """Objects of random boxes; one detection near each, the rest anywhere."""
    rng = np.random.default_rng(0)
    truths, detections = [], []
    for image in range(images):
        boxes = rng.uniform(5, 300, (DETECTIONS, 4))
        classes = rng.integers(1, CLASSES + 1, DETECTIONS)
        scores = rng.random(DETECTIONS)
        for box, label in zip(boxes[:OBJECTS].tolist(), classes.tolist(), strict=False):
            truths.append({"id": len(truths) + 1, "image_id": image, "category_id": label, "bbox": box, "iscrowd": 0})
        boxes[:OBJECTS] += rng.normal(0, 8, (OBJECTS, 4))
        for box, label, score in zip(boxes.clip(1).tolist(), classes.tolist(), scores.tolist(), strict=True):
            detections.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label, "name": str(label)} for label in range(1, CLASSES + 1)],
        "annotations": truths,
    }
    coco.createIndex()
    return coco, detections


def left(truths: COCO, detections: list[dict], evaluator: Evaluator, batch: int = 8) -> float:
    """Milliseconds from the last batch on, where those before are matched."""
    parts = Parts(truths, evaluator)
    step = DETECTIONS * batch  # the detections stand image by image
    for start in range(0, len(detections), step):
        some = detections[start : start + step]
        parts.add(sorted({one["image_id"] for one in some}), some)
    return milliseconds(parts.result, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if fastest_evaluator() == PYCOCOTOOLS:
        parser.error("faster-coco-eval is not installed: pip install 'detrkit[faster-eval]'")
    truths, detections = random_case(arguments.images)
    forms = {"pycocotools": PYCOCOTOOLS, "faster-coco-eval": fastest_evaluator()}
    found = {name: coco_stats(truths, detections, evaluator=form) for name, form in forms.items()}
    runs = {
        name: partial(milliseconds, partial(coco_stats, truths, detections, evaluator=form), torch.device("cpu"))
        for name, form in forms.items()
    }
    apart = {"pycocotools": PYCOCOTOOLS, "faster-coco-eval": fastest_evaluator(in_parts=True)}
    runs |= {f"{name}, left": partial(left, truths, detections, form) for name, form in apart.items()}
    times = take_turns(runs, rounds=arguments.rounds, warmup=0)
    print(f"{arguments.images} images, {DETECTIONS} detections each, {arguments.rounds} rounds")
    for name, result in found.items():
        after = Ratio.of(times[f"{name}, left"], times[name])
        print(
            f"  {name:18} {median(times[name]) / 1000:7.2f} s   AP {result.stats['AP']!r}; matched beside, "
            f"{after.middle:.2f} of it is left (quartiles {after.low:.2f} to {after.high:.2f})"
        )
    ratio = Ratio.of(*(times[name] for name in forms))
    print(f"  ratio {ratio.middle:.2f} (quartiles {ratio.low:.2f} to {ratio.high:.2f})")


if __name__ == "__main__":
    main()
