"""Made-up runs: a recipe and evaluations, without any training."""

import json

import pytest

from detrkit.recipe import load_recipe

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
