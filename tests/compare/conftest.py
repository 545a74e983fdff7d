"""Made-up runs: a recipe and evaluations, without any training."""

import json

import numpy as np
import pytest

from detrkit.evaluation.coco_stats import coco_stats
from detrkit.recipe import load_recipe
from detrkit.runs.history import read_run

PARTS = {"AP50": 1.5, "AP75": 0.9, "APS": 0.5, "APM": 1.0, "APL": 1.2}


@pytest.fixture
def make_run():
    """Write a run's folder: AP in percent by epoch."""

    def make(folder, recipe, aps, *, seed=0, minutes=2.0, overrides=()):
        folder.mkdir(parents=True)
        said = [f"train.seed={seed}", "detector.classes=8", *overrides]
        (folder / "recipe.toml").write_text(load_recipe(recipe, said).to_toml(defaults=True))
        with (folder / "metrics.jsonl").open("w") as file:
            for epoch, ap in aps.items():
                line = {"kind": "evaluate", "step": 10 * epoch, "epoch": epoch, "AP": ap / 100}
                line |= {name: factor * ap / 100 for name, factor in PARTS.items()}
                if minutes is not None:
                    line["minutes"] = minutes * epoch
                file.write(json.dumps({"kind": "train", "step": 10 * epoch, "epoch": epoch, "loss": 1.0}) + "\n")
                file.write(json.dumps(line) + "\n")
        return folder

    return make


@pytest.fixture
def make_found(make_run):
    """Write a run's folder with detections: the truths of its data, moved about, and some that are nothing."""

    def make(folder, recipe, *, noise, seed=0, epoch=4, overrides=()):
        overrides = ["data.val_images=40", *overrides]
        dataset = load_recipe(recipe, overrides).section("data")().val
        truth, draw = dataset.ground_truth(), np.random.default_rng(seed)
        detections = []
        for one in truth.dataset["annotations"]:
            size = np.array(one["bbox"][2:])
            moved = (np.array(one["bbox"][:2]) + noise * draw.normal(size=2) * size).tolist()
            category = one["category_id"] if draw.random() > noise / 2 else int(draw.choice(truth.getCatIds()))
            detections.append(_detection(one["image_id"], category, [*moved, *size.tolist()], 0.5 + draw.random() / 2))
            place = [*draw.uniform(0, 60, size=2).tolist(), 20.0, 20.0]
            detections.append(_detection(one["image_id"], category, place, draw.random()))
        stats = coco_stats(truth, detections).stats
        run = make_run(folder, recipe, {1: 0.0, epoch: 100 * stats["AP"]}, seed=seed, overrides=overrides)
        keep_detections(run, detections, stats, step=10 * epoch)
        return run

    return make


def keep_detections(folder, detections, stats, *, step, **more):
    """What `detrkit evaluate` would write into a run's folder."""
    summary = {"step": step, "split": "val", "overrides": [], "stats": stats}
    summary["data"] = read_run(folder).recipe.full_values()["data"]
    (folder / "evaluation.json").write_text(json.dumps(summary | more))
    (folder / "detections.json").write_text(json.dumps(detections))


def _detection(image_id, category_id, box, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
