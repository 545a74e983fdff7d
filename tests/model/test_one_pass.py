"""Convolutions that add and activate in one pass: the same maps, only where nobody reads between."""

import copy

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import fx, nn

from detrkit.backbones.folding import fold_for_good, fold_frozen_norms
from detrkit.one_pass import OnePassConv2d, in_one_pass
from detrkit.onednn import use_onednn

ACTIVATIONS = nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish


def folded(name):
    """A timm model with folded norms of statistics as after a training, in evaluation mode."""
    torch.manual_seed(0)
    body = freeze_batch_norm_2d(timm.create_model(name, features_only=True, pretrained=False))
    for key, buffer in body.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        if key.endswith(".weight"):  # timm starts the last norm of a block at zero, which would hide the block
            buffer.uniform_(0.3, 0.8)
    use_onednn(body)
    fold_frozen_norms(body, 1)
    fold_for_good(body)
    return body.eval().to(memory_format=torch.channels_last)


def images(size=(75, 101), batch=2):
    return torch.randn(batch, 3, *size).contiguous(memory_format=torch.channels_last)


def error(found, exact):
    """The largest relative error over the maps."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize(
    ("name", "sums", "overwriting"),
    [
        ("test_resnet", 4, 3),  # the first block's shortcut comes from the pooling
        ("fbnetc_100", 15, 15),
        ("regnety_002", 13, 13),
        ("mobilenetv3_small_050", 7, 7),
        ("repvgg_a0", 22, 22),
    ],
)
@torch.no_grad()
def test_maps_are_those_of_the_operations_themselves(name, sums, overwriting):
    body = folded(name)
    given, other = images(), images((64, 96), 1)
    exact = copy.deepcopy(body).double()
    expected = [exact(x.double()) for x in (given, other)]
    plain = copy.deepcopy(body)
    joined = in_one_pass(body)
    convolutions = [m for m in joined.modules() if isinstance(m, OnePassConv2d)]
    assert len(convolutions) == sum(isinstance(m, nn.Conv2d) for m in joined.modules())
    calls = [node for node in joined.graph.nodes if node.op == "call_module" and len(node.args) == 2]
    assert (len(calls), sum(c.overwrites for c in convolutions)) == (sums, overwriting)
    for x, maps in ((given, expected[0]), (other, expected[1]), (given, expected[0])):
        assert error(joined(x), maps) < 2 * error(plain(x), maps) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert error(joined(x), maps) < 1.1 * error(plain(x), maps) < 0.02
    assert error(joined.double()(given.double()), expected[0]) < 1e-12


@torch.no_grad()
def test_no_activation_of_a_resnet_is_left_over():
    joined = in_one_pass(folded("test_resnet"))
    assert not any(isinstance(module, ACTIVATIONS) for module in joined.modules())


@torch.no_grad()
def test_weights_that_change_later_count():
    body = folded("test_resnet")
    plain, joined, given = copy.deepcopy(body), in_one_pass(body), images()
    for precision in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            joined(given)
            for model in (plain, joined):
                for module in model.modules():
                    if isinstance(module, nn.Conv2d):
                        module.weight.mul_(1.1)
            assert error(joined(given), plain(given)) < (0.02 if precision else 1e-5)
            for model in (plain, joined):
                for module in model.modules():
                    if isinstance(module, nn.Conv2d):
                        module.bias.add_(0.1)
            assert error(joined(given), plain(given)) < (0.02 if precision else 1e-5)


@torch.no_grad()
def test_a_copy_after_a_pass_is_a_model_of_its_own():
    joined, given = in_one_pass(folded("test_resnet")), images()
    before = joined(given)
    copied = copy.deepcopy(joined)
    assert error(copied(given), before) == 0
    next(copied.parameters()).zero_()
    assert error(joined(given), before) == 0
    assert error(copied(given), before) > 0


def test_gradients_pass_to_images():
    body, given = folded("test_resnet"), images()
    plain, joined = copy.deepcopy(body), in_one_pass(body)
    found, expected = given.clone().requires_grad_(), given.clone().requires_grad_()
    plain(expected)[-1].sum().backward()
    joined(found)[-1].sum().backward()
    assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-5 * float(expected.grad.abs().max()))


def test_a_model_with_hooks_stays_as_it_is():
    body = folded("test_resnet")
    next(m for m in body.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(lambda *_: None)
    assert in_one_pass(body) is body
    assert not any(isinstance(module, OnePassConv2d) for module in body.modules())


def test_a_model_that_asks_about_its_input_stays_as_it_is():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return [self.convolution(x if x.sum() > 0 else -x)]

    body = Asking()
    assert in_one_pass(body) is body


class Block(nn.Module):
    """Two convolutions and what a test wants of them."""

    def __init__(self, run):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.third, self.narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU()
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def sum_is_read_twice(m, x):
    total = m.first(x) + m.second(x)
    return [total * 1, m.relu(total)]


def convolution_is_read_twice(m, x):
    made = m.first(x)
    return [made * 1, m.silu(made)]


def shortcut_is_read_later(m, x):
    made = m.silu(m.first(x))
    return [m.relu(m.third(made) + made), made * 2]


def shortcut_is_put_out(m, x):
    made = m.first(x)
    return [made, m.third(made) + made]


def shortcut_is_seen_under_another_name(m, x):
    made = m.first(x)
    view = made.flatten(2)
    return [m.third(made) + made, view.sum(2)]


def shortcut_is_the_image(m, x):
    return [m.first(x)[:, :3] + x, x * 1]


def sum_is_wider_than_either(m, x):
    made = m.first(x)
    return [m.relu(m.narrow(made * 1) + made)]


def sum_is_activated_otherwise(m, x):
    return [m.silu(m.first(x) + m.second(x))]


def sum_of_three(m, x):
    made = m.first(x)
    return [m.relu(m.third(made) + m.second(x) + made)]


def doubled(m, x):
    made = m.first(x)
    return [made + made]


def number_is_added(m, x):
    return [m.relu(m.first(x) + 1), torch.add(m.second(x), m.first(x), alpha=2)]


def both_are_activated_before(m, x):
    return [m.silu(m.first(x)) + m.silu(m.second(x))]


def called_twice(m, x):
    return [m.relu(m.first(x)), m.first(x + 1)]


@pytest.mark.parametrize(
    "run",
    [
        sum_is_read_twice,
        convolution_is_read_twice,
        shortcut_is_read_later,
        shortcut_is_put_out,
        shortcut_is_seen_under_another_name,
        shortcut_is_the_image,
        sum_is_wider_than_either,
        sum_is_activated_otherwise,
        sum_of_three,
        doubled,
        number_is_added,
        both_are_activated_before,
        called_twice,
    ],
    ids=lambda run: run.__name__,
)
@torch.no_grad()
def test_only_where_nobody_reads_between(run):
    torch.manual_seed(0)
    body, given = Block(run), images((9, 13))
    kept = given.clone()
    expected = body(given)
    joined = in_one_pass(body)
    assert isinstance(joined, fx.GraphModule)
    for model in (joined, in_one_pass(joined)):  # a form may be made of a form
        assert error(model(given), [x.double() for x in expected]) < 1e-6
        assert torch.equal(given, kept)
