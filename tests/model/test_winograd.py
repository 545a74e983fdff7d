"""Winograd's convolution beside PyTorch's in float64, and when it is taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detrkit import winograd
from detrkit.one_pass import OnePassConv2d, in_one_pass
from detrkit.winograd import convolve, gains, transformed


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.fixture
def _pays(monkeypatch):
    monkeypatch.setattr(winograd, "winograd_gain", lambda threads: 2.0)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (1, 1), (4, 5), (7, 2), (3, 17)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(height, width, bias, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 5, height, width).contiguous(memory_format=layout)
    kernels, shift = torch.randn(7, 5, 3, 3), torch.randn(7) if bias else None
    found = convolve(x, transformed(kernels), shift)
    exact = F.conv2d(x.double(), kernels.double(), None if shift is None else shift.double(), padding=1)
    assert found.dtype == torch.float32
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < 2e-6


def test_the_matrices_are_exact():
    """Without rounding a tile is what the definition gives, for one row of pixels and for a square of them."""
    result, kernel, pixels = winograd._matrices()
    d, g = torch.randn(6, 6, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    row = result @ ((kernel @ g[0]) * (pixels @ d[0]))
    assert torch.allclose(row, torch.stack([(g[0] * d[0, i : i + 3]).sum() for i in range(4)]), atol=1e-12)
    square = result @ ((kernel @ g @ kernel.T) * (pixels @ d @ pixels.T)) @ result.T
    assert torch.allclose(square, F.conv2d(d[None, None], g[None, None])[0, 0], atol=1e-12)


@pytest.mark.parametrize("channels", [128, 256])
def test_rounding_is_less_than_three_times_that_of_a_direct_convolution(channels):
    """With the paper's points it is five times that."""
    torch.manual_seed(0)
    x = torch.randn(1, channels, 24, 24).relu_().contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(channels, channels, 3, 3)
    exact = F.conv2d(x.double(), kernels.double(), padding=1)
    assert error(convolve(x, transformed(kernels)), exact) < 3 * error(F.conv2d(x, kernels, padding=1), exact)


@pytest.mark.usefixtures("_pays")
def test_it_is_taken_for_enough_channels_and_tiles_in_float32_alone():
    assert gains(torch.empty(1, 128, 16, 24), 128)
    assert gains(torch.empty(4, 128, 9, 5), 128)
    assert not gains(torch.empty(1, 128, 16, 20), 128)
    assert not gains(torch.empty(1, 64, 80, 80), 128)
    assert not gains(torch.empty(1, 128, 80, 80), 64)
    assert not gains(torch.empty(1, 128, 16, 24, dtype=torch.bfloat16), 128)


def test_it_is_not_taken_where_it_was_measured_not_to_pay(monkeypatch):
    monkeypatch.setattr(winograd, "winograd_gain", lambda threads: 1.2)
    assert not gains(torch.empty(1, 128, 80, 80), 128)


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_what_it_gains_is_measured_on_the_cpu(default, monkeypatch):
    monkeypatch.setattr(winograd, "_matrices", winograd._matrices.__wrapped__)
    monkeypatch.setattr(winograd, "_transforms", winograd._transforms.__wrapped__)
    seen = []
    monkeypatch.setattr(winograd, "convolve", lambda *given: seen.append(convolve(*given)) or seen[-1])
    with torch.device(default):
        assert 0.05 < winograd.winograd_gain.__wrapped__(torch.get_num_threads()) < 20
    assert {found.device.type for found in seen} == {"cpu"}


class Block(nn.Module):
    """A ResNet's: two convolutions, the second with a shortcut."""

    def __init__(self, **options):
        super().__init__()
        self.first = nn.Conv2d(128, 128, 3, padding=1, **options)
        self.second = nn.Conv2d(128, 128, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


@pytest.mark.usefixtures("_pays")
@pytest.mark.parametrize("size", [(21, 27), (8, 8)])  # tiles; too few of them
@torch.no_grad()
def test_a_convolution_in_tiles_also_adds_and_activates(size, monkeypatch):
    torch.manual_seed(0)
    block = Block().eval()
    joined = in_one_pass(copy.deepcopy(block))
    calls = []
    monkeypatch.setattr(winograd, "convolve", lambda *given: calls.append(1) or convolve(*given))
    given = torch.randn(1, 128, *size).contiguous(memory_format=torch.channels_last)
    before = given.clone()
    found = joined(given)
    assert len(calls) == (2 if size == (21, 27) else 0)
    assert error(found, copy.deepcopy(block).double()(given.double())) < 2e-6
    assert torch.equal(given, before)
    joined.second.weight.mul_(2)  # weights that change later count
    block.second.weight.mul_(2)
    assert error(joined(given), copy.deepcopy(block).double()(given.double())) < 2e-6
    assert error(copy.deepcopy(joined)(given), joined(given).double()) == 0


@pytest.mark.usefixtures("_pays")
@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"dilation": 2}, {"padding": 0}, {"kernel_size": 1}])
@torch.no_grad()
def test_other_convolutions_do_not_go_in_tiles(options, monkeypatch):
    monkeypatch.setattr(winograd, "convolve", lambda *_: pytest.fail("it is no such convolution"))
    plain = nn.Conv2d(128, 128, **{"kernel_size": 3, "padding": 1} | options)
    layer = copy.deepcopy(plain)
    layer.__class__ = OnePassConv2d
    given = torch.randn(1, 128, 40, 40).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(layer(given), plain(given), atol=1e-4)


@pytest.mark.usefixtures("_pays")
def test_gradients_do_not_go_in_tiles():
    layer = nn.Conv2d(128, 128, 3, padding=1)
    layer.__class__ = OnePassConv2d
    given = torch.randn(1, 128, 20, 20).requires_grad_()
    layer(given).sum().backward()
    assert given.grad is not None
    assert layer.weight.grad is not None
