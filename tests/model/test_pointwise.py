"""Kernels of one pixel are computed by oneDNN on one thread too, with the numbers of torch's own convolution."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from detrkit.backbones.timm_backbone import TimmBackbone
from detrkit.layers import Conv2d

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kernels(run):
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        run()
    return {event.key for event in watched.key_averages()}


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 4}, {"bias": False}, {"kernel_size": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [4, 40])
def test_it_is_the_plain_convolution(options, dtype, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 24, **{"kernel_size": 1, **options}).to(dtype)
    ours = Conv2d(16, 24, **{"kernel_size": 1, **options}).to(dtype)
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(1, 16, size, size, dtype=dtype, requires_grad=True)
    sides = []
    for layer in (plain, ours):
        out = layer(images)
        sides.append([out, *torch.autograd.grad(out.square().sum(), [images, *layer.parameters()])])
    for expected, found in zip(*sides, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_a_backbone_goes_by_onednn_forward_and_backward():
    body = TimmBackbone(name="test_resnet", pretrained=False, frozen_stride=0)
    images = torch.randn(2, 3, 64, 64)
    found = kernels(lambda: body(images, None)[0].values.sum().backward())
    assert "aten::mkldnn_convolution" in found
    assert not {name for name in found if "slow_conv" in name}


def test_small_maps_do_not_fall_to_the_kernel_for_dilated_ones():
    small = torch.randn(1, 16, 8, 8)
    assert not {name for name in kernels(lambda: Conv2d(16, 24, 1)(small)) if "dilated" in name}
