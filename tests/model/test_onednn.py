"""Kernels of one pixel and linear layers are computed by oneDNN, with the numbers of torch's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import detrkit
from detrkit import onednn
from detrkit.backbones.timm_backbone import TimmBackbone
from detrkit.onednn import Conv2d, Linear, linear, multiply, use_onednn

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"),
    pytest.mark.usefixtures("_one_thread"),
]

PRODUCT = "mkldnn::_linear_pointwise"


def kernels(run):
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        run()
    return {event.key: event.count for event in watched.key_averages()}


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-5, atol=2e-6 * expected.abs().max().item())


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


@pytest.mark.parametrize("channels", [3, 8])
def test_one_pixel_of_stride_two_on_few_channels_keeps_to_its_memory(channels):
    """PyTorch 2.11 to 2.14's own gradient of it ends the process on CPUs with AVX512 where channels lie last."""
    torch.manual_seed(0)
    ours = Conv2d(channels, 48, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
    images = torch.randn(2, channels, 129, 128)
    for _ in range(3):
        out = ours(images.contiguous(memory_format=torch.channels_last))
        (found,) = torch.autograd.grad(out.square().sum(), [ours.weight])
    weight = ours.weight.detach().double()[:, :, 0, 0].requires_grad_()
    expected = torch.einsum("oc,bchw->bohw", weight, images[..., ::2, ::2].double())
    assert close(out, expected.float())
    assert close(found[:, :, 0, 0], torch.autograd.grad(expected.square().sum(), [weight])[0].float())


def test_a_backbone_goes_by_onednn_forward_and_backward():
    body = TimmBackbone(name="test_resnet", pretrained=False, frozen_stride=0)
    images = torch.randn(2, 3, 64, 64)
    found = kernels(lambda: body(images, None)[0].values.sum().backward())
    assert "aten::mkldnn_convolution" in found
    assert not {name for name in found if "slow_conv" in name}


def test_small_maps_do_not_fall_to_the_kernel_for_dilated_ones():
    small = torch.randn(1, 16, 8, 8)
    assert not {name for name in kernels(lambda: Conv2d(16, 24, 1)(small)) if "dilated" in name}


INPUTS = {  # tensors [..., 160] of many layouts
    "rows": lambda: torch.randn(2, 100, 160),
    "one row": lambda: torch.randn(160),
    "turned": lambda: torch.randn(2, 160, 100).transpose(1, 2),
    "same rows": lambda: torch.randn(160).expand(2, 100, 160),
    "same numbers": lambda: torch.randn(2, 100, 1).expand(2, 100, 160),
    "of wider rows": lambda: torch.randn(2, 100, 480).chunk(3, dim=-1)[1],
    "every other": lambda: torch.randn(2, 100, 320)[..., ::2],
    "none": lambda: torch.randn(2, 0, 160),
}


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_plain_linear_layer(layout, bias, faster, monkeypatch):
    monkeypatch.setattr(onednn, "ENOUGH", 1)
    torch.manual_seed(0)
    layer = nn.Linear(160, 120, bias=bias)
    ours = copy.deepcopy(layer)
    use_onednn(ours)
    exact = copy.deepcopy(layer).double()
    x = INPUTS[layout]()
    factor = torch.randn(120)
    sides = []
    for side, given in ((exact, x.double()), (ours, x)):
        leaf = given.detach().requires_grad_()
        out = side(leaf)
        # The sum's gradient has strides of zero.
        grads = torch.autograd.grad((out * factor.to(out.dtype)).sum(), [leaf, *side.parameters()])
        sides.append([out, *grads])
    for expected, found in zip(*sides, strict=True):
        assert found.dtype == torch.float32
        assert found.shape == expected.shape
        assert not expected.numel() or close(found.double(), expected)


@pytest.mark.usefixtures("_faster")
def test_second_derivatives_are_the_plain_ones():
    torch.manual_seed(0)
    x, weight, bias = (t.requires_grad_() for t in (torch.randn(2, 100, 160), torch.randn(120, 160), torch.randn(120)))
    sides = []
    for way in (F.linear, linear):
        first = torch.autograd.grad(way(x, weight, bias).square().sum(), [x, weight], create_graph=True)
        sides.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, weight, bias]))
    assert all(close(found, expected) for expected, found in zip(*sides, strict=True))


def test_products_go_by_onednn_where_that_is_faster(faster):
    layer = Linear(160, 120)
    x = torch.randn(2, 100, 160, requires_grad=True)
    assert kernels(lambda: layer(x).square().sum().backward()).get(PRODUCT, 0) == (3 if faster else 0)


@pytest.mark.usefixtures("_faster")
def test_only_gradients_that_are_asked_for_are_computed():
    layer = Linear(160, 120).requires_grad_(False)
    x = torch.randn(2, 100, 160, requires_grad=True)
    assert kernels(lambda: layer(x).sum().backward())[PRODUCT] == 2


@pytest.mark.usefixtures("_faster")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_by_pytorch(dtype):
    x = torch.randn(2, 100, 160, dtype=dtype)
    assert PRODUCT not in kernels(lambda: Linear(160, 120, dtype=dtype)(x))


@pytest.mark.usefixtures("_faster")
def test_small_products_go_by_pytorch():
    assert PRODUCT not in kernels(lambda: Linear(160, 4)(torch.randn(2, 100, 160)))


@pytest.mark.usefixtures("_faster")
def test_those_who_watch_operations_see_pytorchs_own():
    layer, x = Linear(160, 120), torch.randn(2, 100, 160)

    def counted():
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 200 * 160 * 120

    def autocast():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16

    def switched_off():
        with torch.backends.mkldnn.flags(enabled=False):
            layer(x)

    def mapped():
        torch.func.vmap(torch.func.grad(lambda row: layer(row).sum()))(x)

    watchers = [counted, autocast, switched_off, mapped, lambda: torch.jit.trace(layer, x, check_trace=False)]
    assert [PRODUCT in kernels(run) for run in watchers] == [False] * 5
    assert not [node for node in torch.export.export(layer, (x,)).graph.nodes if "mkldnn" in str(node.target)]


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_the_gain_is_measured_on_the_cpu(default, monkeypatch):
    seen = []
    monkeypatch.setattr(onednn, "multiply", lambda *given: seen.append(given[0].device.type) or multiply(*given))
    with torch.device(default):
        assert 0.01 < onednn.onednn_gain.__wrapped__(1) < 100
    assert set(seen) == {"cpu"}


def test_layers_of_a_class_of_their_own_stay():
    class Own(nn.Linear):
        pass

    parts = nn.Sequential(nn.Linear(2, 3), Own(3, 4), nn.Conv2d(4, 5, 1), nn.LayerNorm(5))
    names = list(parts.state_dict())
    use_onednn(parts)
    assert [type(part) for part in parts] == [Linear, Own, Conv2d, nn.LayerNorm]
    assert list(parts.state_dict()) == names


@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "faster_rcnn_r50_108ep"])
def test_a_built_detector_takes_it_everywhere(name):
    small = ["detector.classes=3", "backbone.pretrained=false", "backbone.name=test_resnet"]
    detector = detrkit.build_detector(detrkit.load_recipe(name, small))
    assert not [key for key, part in detector.named_modules() if type(part) in (nn.Linear, nn.Conv2d)]


def test_the_gain_is_measured_in_float32_whoever_asks():
    """It is kept for the whole process, and the first to ask may be a forward pass in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        found = kernels(lambda: onednn.onednn_gain.__wrapped__(1))
    assert PRODUCT in found
    assert "aten::_to_copy" not in found
