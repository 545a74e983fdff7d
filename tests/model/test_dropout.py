"""Dropout of 16 random bits: its chance, its scale, its gradient, and where it is PyTorch's own."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detrkit.dropout import Dropout, draw, keep, kept_share


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_so_many_are_left_out_and_the_rest_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.full((300, 1000), 3.0)
    out = Dropout(p)(x)
    left = (out == 0).double().mean().item()
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(left - p) < 5 * deviation
    assert torch.allclose(out[out != 0], torch.tensor(3 / (1 - p)), rtol=1e-4)
    rows = (out == 0).double().mean(1)  # no run of one row, no row like the next
    assert rows.var().item() == pytest.approx(p * (1 - p) / 1000, rel=0.5)
    assert ((out[1:] == 0) == (out[:-1] == 0)).double().mean().item() == pytest.approx(p**2 + (1 - p) ** 2, abs=0.01)


def test_the_gradient_passes_what_was_kept():
    x = torch.randn(7, 33, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 1 / torch.tensor(0.75)))


def test_it_has_second_derivatives():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)

    def dropped(x):
        torch.manual_seed(0)
        return Dropout(0.25)(x) ** 2

    assert torch.autograd.gradgradcheck(dropped, x)


def test_the_seed_says_what_is_kept():
    x, module = torch.ones(5, 5, 5), Dropout(0.5)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(module(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types_and_shapes_stay(dtype):
    out = Dropout(0.5)(torch.ones(3, 0, 5, dtype=dtype)), Dropout(0.5)(torch.ones(3, 5, dtype=dtype))
    assert [one.shape for one in out] == [(3, 0, 5), (3, 5)]
    assert {one.dtype for one in out} == {dtype}
    assert set(out[1].flatten().tolist()) <= {0.0, 2.0}


def test_every_case_of_16_bits_counts():
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    for p in (1e-7, 0.1, 0.5, 1 - 1e-7):
        assert keep(every, p, torch.float32).double().mean().item() == kept_share(p)
        assert kept_share(p) == pytest.approx(1 - p, abs=2**-16)
    torch.manual_seed(0)
    assert len(draw((2**20,)).unique()) == 2**16


def test_what_does_nothing_gives_its_input():
    x = torch.randn(4)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x


def test_who_watches_operations_sees_pytorch_s_own():
    x = torch.ones(8, 8)
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    with FlopCounterMode(display=False):
        assert torch.equal(Dropout(0.5)(x), expected)
    assert not Dropout(1.0)(x).any()
