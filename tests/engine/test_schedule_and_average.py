import copy
import math

import pytest
import torch
from torch import nn

from detrkit.engine.ema import MovingAverage
from detrkit.engine.optimiser import build_optimiser, clip_and_step
from detrkit.engine.options import TrainOptions
from detrkit.engine.schedule import rate_factor


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


class Counting(nn.Module):
    """Keeps buffers as people's own parts do: a mask of -inf, and new tensors in the old ones' places."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("center", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("last", None)

    def forward(self):
        self.center = self.center + 1
        self.seen = torch.cat((self.seen, torch.tensor([len(self.seen)])))
        self.last = self.seen[-1:]


def test_the_average_has_the_buffers_that_its_detector_has_now():
    detector = Counting()
    average = MovingAverage(detector, decay=0.5)
    for _ in range(2):
        detector()
        average.update()
    assert average.module.mask.tolist() == [0, -math.inf]
    assert average.module.center.item() == pytest.approx(0.9 * 2 / 11 + 2 * 9 / 11)  # decays 1/10 and 2/11
    assert average.module.seen.tolist() == [0, 1]
    assert average.module.last.tolist() == [1]


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


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.01, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update_is_that_of_pytorchs_own_clipping(name, clip_norm, dtype):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    theirs = copy.deepcopy(ours)
    options = TrainOptions(optimizer=name, learning_rate=0.1)
    one, other = (build_optimiser(model, options) for model in (ours, theirs))
    for step in range(6):
        given = torch.randn(4, 5, dtype=dtype) * 10 ** (step - 3)  # norms below and above the limit
        (ours(given) ** 2).mean().backward()
        norm = clip_and_step(one, clip_norm)
        (theirs(given) ** 2).mean().backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm or math.inf)
        other.step()
        other.zero_grad()
        torch.testing.assert_close(norm, expected)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # the divisor is in float32


def test_momentum_begins_with_a_parameters_own_first_step():
    """Also where that step is left out, and where others have begun: PyTorch's kernel takes memory as it finds it."""
    module = nn.Linear(1000, 1)
    optimiser = build_optimiser(module, TrainOptions(optimizer="sgd", learning_rate=0.1, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    junk = [torch.full((1, 1000), 7.7) for _ in range(50)]
    del junk
    module.weight.grad = torch.full((1, 1000), torch.nan)
    assert clip_and_step(optimiser, 0.0).isnan()
    for steps in (1, 2):
        module.weight.grad = torch.ones(1, 1000)
        if steps == 2:
            module.bias.grad = torch.ones(1)
        clip_and_step(optimiser, 0.0)
    torch.testing.assert_close(module.weight, before["weight"] - 0.1 * (1 + 1.9))
    torch.testing.assert_close(module.bias, before["bias"] - 0.1)
