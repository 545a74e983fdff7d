"""A step that was not finite is kept in one file, which gives the same numbers again and says where it goes wrong."""

import re

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from detrkit.cli.app import app
from detrkit.data import Batch
from detrkit.engine.replay import Settings, compute, read_step, replay
from detrkit.engine.soundness import NotFiniteError
from detrkit.engine.train import train
from detrkit.errors import CheckpointError
from detrkit.recipe import load_recipe
from tests.engine.toys import ToyCriterion, ToyDetector, toy_trainer

LOSS = """
import torch
from detrkit import register
from detrkit.losses.base import Loss

@register("loss", "bad")
class Bad(Loss):
    def __init__(self, *, weight: float = 1.0):
        self.weight = weight

    def __call__(self, output, targets, matches, objects):
        worst = 1.0 if output.boxes.shape[1] == 2 and len(targets.boxes) == 2 and torch.is_grad_enabled() else 0.0
        return (output.boxes - 2 * worst).log().flatten(1).sum(1) / objects
"""


class Recorded(ToyCriterion):
    def __init__(self):
        super().__init__()
        self.totals = []

    def forward(self, *given):
        losses = super().forward(*given)
        self.totals.append(losses["total"].item())
        return losses


def test_a_kept_step_gives_the_numbers_that_the_training_had(tmp_path):
    """The third step, with dropout, fails in one of two trainings that are alike."""
    recorded = Recorded()
    toy_trainer(tmp_path / "sound", criterion=recorded, epochs=1).fit()
    fail = lambda call, one: setattr(one, "factor", float("inf") if call == 3 else 1.0)  # noqa: E731
    failing = toy_trainer(tmp_path / "run", hook=fail, epochs=1)
    with pytest.raises(
        NotFiniteError, match=r"kept in .*step_3_process_0\.safetensors, for detrkit\.engine\.replay\.compute"
    ):
        failing.fit()
    [path] = (tmp_path / "run" / "not_finite").iterdir()
    weights, batch, settings, _ = read_step(path)
    assert all(torch.equal(failing.detector.state_dict()[name], tensor) for name, tensor in weights.items())
    with pytest.raises(CheckpointError, match="without a recipe"):
        replay(path)
    again = {"batch": batch, "settings": settings, "device": torch.device("cpu"), "precision": "fp32"}
    found = compute(failing.detector, ToyCriterion(), **again)
    assert found.is_finite
    assert found.losses["total"] == recorded.totals[2]


@pytest.mark.parametrize(
    ("fault", "said"),
    [("weights", "box.bias"), ("module", "norm"), ("images", "the images"), ("way back", "MulBackward")],
)
def test_where_it_goes_wrong_is_found(fault, said):
    detector, criterion = ToyDetector(), ToyCriterion()
    images = torch.rand(2, 3, 4, 4)
    if fault == "weights":
        nn.init.constant_(detector.box.bias, torch.nan)
    if fault == "images":
        images[0, 0, 0, 0] = torch.inf
    if fault == "module":
        detector.norm.eps = -1e9  # the root of something negative
    if fault == "way back":
        detector.drop.forward = lambda values: values + (values * 0).sqrt()
    targets = [{"labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.rand(1, 4)}] * 2
    batch = Batch(images, None, targets, [1, 2], torch.tensor([[4, 4]] * 2))
    settings = Settings(0, 0, 0, 0, 2.0, 2, "fp32")
    found = compute(detector, criterion, batch, settings, device=torch.device("cpu"), precision="fp32")
    assert not found.is_finite
    assert found.gradients
    told = {"weights": found.weights, "images": found.weights, "module": [found.module], "way back": [found.operation]}
    assert said in str(told[fault])


def test_a_training_s_file_is_replayed_by_one_command(tmp_path):
    (tmp_path / "bad.py").write_text(LOSS)
    (tmp_path / "bad.toml").write_text(
        """
extends = "quickstart"
imports = ["bad.py"]
losses.bad = { type = "bad" }
backbone.name = "test_resnet"
detector = { width = 32, heads = 2 }
data = { train_images = 4, val_images = 2 }
train = { epochs = 1, batch_size = 2, workers = 0, loggers = [] }
evaluate.pictures = 0
"""
    )
    with pytest.raises(NotFiniteError) as error:
        train(load_recipe(str(tmp_path / "bad.toml")), tmp_path / "run")
    command = re.search(r"detrkit (replay .*\.safetensors)", str(error.value))[1].split()
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 1, result.output
    assert "bad nan" in result.output
    assert "not finite first in the output of criterion" in result.output
    shown = re.search(r"total ([^\s,]+)", str(error.value))[1]
    assert f"total {shown}" in result.output


def test_another_file_is_refused(tmp_path):
    toy_trainer(tmp_path, epochs=1).fit()
    with pytest.raises(CheckpointError, match="is no step that a training has kept"):
        read_step(tmp_path / "last" / "weights.safetensors")
