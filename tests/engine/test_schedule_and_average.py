import math

import pytest
import torch
from torch import nn

from detrkit.engine.ema import MovingAverage
from detrkit.engine.optimiser import build_optimiser, clip_and_step, set_rate
from detrkit.engine.options import TrainOptions
from detrkit.engine.schedule import rate_factor
from detrkit.errors import UserError

from .toys import ToyDetector


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.001),
        (250, 0.001 * 0.75 + 0.25),
        (999, 0.001 * 0.001 + 0.999),
        (1000, 1.0),
        (40 * 100 - 1, 1.0),
        (40 * 100, 0.1),
        (45 * 100, 0.01),
        (50 * 100 - 1, 0.01),
    ],
)
def test_steps(step, factor):
    options = TrainOptions(epochs=50, drop_epochs=(40, 45), warmup_steps=1000)
    assert rate_factor(step, steps_per_epoch=100, options=options) == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.1), (5, 0.55), (10, 1.0), (10 + 45, 0.5), (10 + 30, 0.75), (99, (1 - math.cos(math.pi / 90)) / 2)],
)
def test_cosine(step, factor):
    options = TrainOptions(epochs=10, schedule="cosine", warmup_steps=10, warmup_factor=0.1)
    assert rate_factor(step, steps_per_epoch=10, options=options) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.0),
        (5, 0.25),
        (10, 1.0),
        (340, 1.0),
        (340 + 80, 0.5 + 0.5 * (1 + math.cos(math.pi / 3)) / 2),
        (340 + 120, 0.75),
        (580, 0.5),
        (599, 0.5),
    ],
)
def test_flat_and_cosine(step, factor):
    """DEIM's numbers for 60 epochs of 10 steps: flat for 34, at half the rate for the last 2."""
    options = TrainOptions(
        epochs=60,
        schedule="flat_cosine",
        flat_epochs=34,
        low_epochs=2,
        lowest=0.5,
        warmup_steps=10,
        warmup_factor=0,
        warmup_power=2,
    )
    assert rate_factor(step, steps_per_epoch=10, options=options) == pytest.approx(factor, rel=1e-9)


def test_the_average_by_hand():
    detector = nn.Linear(1, 1, bias=False)
    nn.init.constant_(detector.weight, 0.0)
    average = MovingAverage(detector, decay=0.15)
    nn.init.constant_(detector.weight, 1.0)
    average.update()  # decay 1/10
    assert average.module.weight.item() == pytest.approx(0.9)
    average.update()  # min(0.15, 2/11)
    assert average.module.weight.item() == pytest.approx(0.15 * 0.9 + 0.85)
    assert average.updates == 2
    assert not average.module.weight.requires_grad


def test_the_average_follows_running_statistics():
    detector = nn.BatchNorm1d(1)
    average = MovingAverage(detector, decay=0.5)
    detector(torch.tensor([[10.0], [12.0]]))
    average.update()
    assert average.module.running_mean.item() == pytest.approx(0.9 * 1.1)
    assert average.module.num_batches_tracked.item() == 1
    assert not average.module.training


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.fixed = nn.Parameter(torch.zeros(1), requires_grad=False)


def groups(**options):
    optimiser = build_optimiser(Detector(), TrainOptions(**options))
    return {(group["lr"], group["weight_decay"]): group["names"] for group in optimiser.param_groups}, optimiser


def test_published_groups_decay_everything():
    found, _ = groups(learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=1e-2)
    assert found == {
        (1e-5, 1e-2): ["backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias"],
        (1e-4, 1e-2): ["norm.weight", "norm.bias", "head.weight", "head.bias"],
    }


def test_groups_without_decay_of_norms():
    found, optimiser = groups(learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=1e-2, decay_norms=False)
    assert found == {
        (1e-5, 1e-2): ["backbone.0.weight"],
        (1e-5, 0.0): ["backbone.0.bias", "backbone.1.weight", "backbone.1.bias"],
        (1e-4, 0.0): ["norm.weight", "norm.bias", "head.bias"],
        (1e-4, 1e-2): ["head.weight"],
    }
    set_rate(optimiser, 0.5)
    assert {group["lr"] for group in optimiser.param_groups} == {5e-5, 5e-6}
    set_rate(optimiser, 1.0)
    assert {group["lr"] for group in optimiser.param_groups} == {1e-4, 1e-5}


def test_sgd_by_hand():
    weight = nn.Parameter(torch.tensor([2.0]))
    module = nn.Module()
    module.weight = weight
    options = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.25}
    optimiser = build_optimiser(module, TrainOptions(optimizer="sgd", **options))
    expected, velocity = 2.0, 0.0
    for gradient in (1.0, -2.0, 0.5):
        weight.grad = torch.tensor([gradient])
        clip_and_step(optimiser, 0.0)
        velocity = 0.5 * velocity + gradient + 0.25 * expected
        expected -= 0.1 * velocity
        assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_equal_rates_share_a_group():
    found, _ = groups(learning_rate=1e-4, backbone_learning_rate=1e-4)
    assert len(found) == 1


def test_a_backbone_with_rate_zero_is_frozen():
    detector = Detector()
    optimiser = build_optimiser(detector, TrainOptions(backbone_learning_rate=0))
    assert not any(parameter.requires_grad for parameter in detector.backbone.parameters())
    assert [name for group in optimiser.param_groups for name in group["names"]] == [
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]


def test_parts_are_frozen_by_their_names():
    detector = ToyDetector(dropout=0.0)
    names = [name for name, _ in detector.named_parameters()]
    part = names[0].rpartition(".")[0]
    build_optimiser(detector, TrainOptions(freeze=(part,)))
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in names if name.startswith(f"{part}.")}
    with pytest.raises(UserError, match=r'train\.freeze: this detector has no "bakbone"; its parts are'):
        build_optimiser(ToyDetector(dropout=0.0), TrainOptions(freeze=("bakbone",)))
    with pytest.raises(UserError, match="leaves nothing to train"):
        build_optimiser(ToyDetector(dropout=0.0), TrainOptions(freeze=tuple({n.split(".")[0] for n in names})))
