"""A recipe on the shapes data, made as small as it goes, and what a test of its training begins with."""

from typer.testing import CliRunner

from detrkit.cli.app import app

SMALL = (
    "detector.width=16",
    "detector.heads=2",
    "detector.classes=none",
    "encoder.layers=1",
    "encoder.feedforward=16",
    "decoder.layers=2",
    "decoder.feedforward=16",
    "queries.grid=[3,3]",
    "data.image_size=64",
    "data.train_images=12",
    "data.val_images=3",
    "data.classes=['circle','bar']",
    "train.epochs=2",
    "train.batch_size=4",
    "train.micro_batch=3",
    "train.warmup_steps=1",
    "train.ema_decay=0.9",
    "train.log_every=2",
    "train.workers=0",
    "train.device=cpu",
    "evaluate.pictures=1",
)  # 3 steps an epoch


def run(*arguments):
    """`detrkit train ARGUMENTS`."""
    return CliRunner().invoke(app, ["train", *arguments])
