"""A run that is small enough to be made in a second or two."""

from pathlib import Path

from PIL import Image

from detrkit.engine.train import train
from detrkit.recipe import load_recipe

from .hunting import verb

SMALL_RUN = (
    "detector.width=16",
    "detector.heads=2",
    "detector.classes=none",
    "encoder.layers=1",
    "encoder.feedforward=16",
    "decoder.layers=1",
    "decoder.feedforward=16",
    "queries.grid=[3,3]",
    "data.image_size=64",
    "data.train_images=8",
    "data.val_images=2",
    "data.classes=['circle','bar']",
    "train.epochs=2",
    "train.batch_size=4",
    "train.warmup_steps=1",
    "train.ema_decay=0.9",
    "train.log_every=1",
    "train.workers=0",
    "train.device=cpu",
    "evaluate.pictures=0",
)


def make_run(folder: Path, *overrides: str) -> Path:
    """A run of four steps."""
    train(load_recipe("quickstart", [*SMALL_RUN, *overrides]), folder)
    return folder


def warm_up(folder: Path) -> None:
    """Use what the verbs use, so that forks need not import it again, which takes seconds."""
    run = make_run(folder / "run", "evaluate.pictures=1")
    Image.new("RGB", (64, 48), "orange").save(folder / "a.png")
    verb("evaluate", run)
    verb("predict", run, folder / "a.png", "--out", folder / "drawn")
    verb("show", run, "val:1")
    verb("report", run)
    verb("compare", run, "--size", "64x64", "--out", folder / "compared")
