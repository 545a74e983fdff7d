"""Frozen norms that convolutions do: the same numbers as torch's own norms, only where nobody reads between."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, freeze_batch_norm_2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from detrkit.backbones.folding import FoldedConv2d, fold_for_good, fold_frozen_norms
from detrkit.backbones.timm_backbone import TimmBackbone

SIZE = (75, 101)


def plain(name):
    """A timm model in float64 with frozen norms as timm makes them, of statistics as after a training."""
    torch.manual_seed(0)
    body = freeze_batch_norm_2d(timm.create_model(name, features_only=True, pretrained=False)).double()
    for key, buffer in body.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.3)
        if key.endswith("running_var"):
            buffer.uniform_(0.3, 3)
        if key.endswith(("bn.bias", "1.bias", "2.bias", "3.bias")):
            buffer.normal_(std=0.3)
    return body


def gradients(body, images):
    for parameter in body.parameters():
        parameter.grad = None
    maps = body(images)
    sum((m * torch.linspace(-1, 1, m.numel(), dtype=m.dtype).view_as(m)).sum() for m in maps).backward()
    return maps, {key: p.grad for key, p in body.named_parameters()}


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "folds"),
    [
        ("test_resnet", "all"),  # a norm, then an activation
        ("test_efficientnet", "all"),  # norms with their activation
        ("tf_mobilenetv3_small_minimal_100", "all"),  # pads by the size of its input
        ("resnet50d", "all"),
        ("regnetx_002", "all"),
        ("densenet121", "some"),  # half of its norms come before their convolution
        ("repvgg_a0", "some"),  # norms of an input
    ],
)
def test_outputs_and_gradients_are_those_of_the_norms_themselves(name, folds):
    body = plain(name)
    folded = copy.deepcopy(body)
    count = fold_frozen_norms(folded, 1)
    norms = sum("running_var" in key for key in body.state_dict())
    assert count == norms if folds == "all" else norms / 3 < count < norms
    images = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    expected, expected_gradients = gradients(body, images)
    found, found_gradients = gradients(folded, images)
    assert all(close(a, b) for a, b in zip(found, expected, strict=True))
    for key, gradient in expected_gradients.items():
        assert (gradient is None) == (found_gradients[key] is None)
        assert gradient is None or close(found_gradients[key], gradient), key
    assert list(folded.state_dict()) == list(body.state_dict())
    fold_for_good(folded)
    with torch.no_grad():
        assert all(close(a, b) for a, b in zip(folded(images), expected, strict=True))
    assert not any(isinstance(module, FoldedConv2d) for module in folded.modules())


class Pair(nn.Module):
    """A convolution and a norm after it, each with numbers of its own."""

    def __init__(self, convolution=None, norm=None):
        super().__init__()
        self.convolution = convolution or nn.Conv2d(3, 5, 3)
        self.norm = norm or nn.BatchNorm2d(5)
        for tensor in (*self.norm.parameters(), *self.norm.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 2)

    def forward(self, x):
        return self.norm(self.convolution(x))


class ReadTwice(Pair):
    def forward(self, x):
        made = self.convolution(x)
        return self.norm(made) + made


class ReadThroughAView(Pair):
    def forward(self, x):
        made = self.convolution(x)
        row = made[:, :, :1]
        return self.norm(made) + row


class Returned(Pair):
    def forward(self, x):
        made = self.convolution(x)
        return self.norm(made), made


class CalledTwice(Pair):
    def forward(self, x):
        return self.norm(self.convolution(x)) + self.convolution(x).sum()


class Between(Pair):
    def forward(self, x):
        return self.norm(self.convolution(x).relu_())


class NormedTwice(Pair):
    def forward(self, x):
        return self.norm(self.norm(self.convolution(x)))


class InTrainingOnly(Pair):
    def forward(self, x):
        made = self.convolution(x)
        return self.norm(made) if self.training else made


class OfItsWeights(Pair):
    def forward(self, x):
        return self.norm(nn.functional.conv2d(x, self.convolution.weight))


@pytest.mark.parametrize(
    "kind",
    [ReadTwice, ReadThroughAView, Returned, CalledTwice, Between, NormedTwice, InTrainingOnly, OfItsWeights],
)
def test_a_convolution_that_somebody_else_reads_keeps_its_norm(kind):
    model = freeze_batch_norm_2d(kind())
    images = torch.randn(1, 3, 9, 8)
    before = model(images)
    assert fold_frozen_norms(model, 1) == 0
    assert type(model.norm) is FrozenBatchNorm2d
    for found, expected in zip(model(images), before, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 5, 3),
        nn.Conv2d(3, 5, 3, bias=False, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 5, (3, 1), stride=2, dilation=2),
        Conv2dSame(3, 5, 3, stride=2),
    ],
)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(5), BatchNormAct2d(5, eps=1e-3)])
def test_a_pair_of_any_options_folds(convolution, norm):
    model = freeze_batch_norm_2d(Pair(copy.deepcopy(convolution), copy.deepcopy(norm)))
    images = torch.randn(2, 3, 11, 9)
    expected = model(images)
    assert fold_frozen_norms(model, 1) == 1
    assert torch.allclose(model(images), expected, atol=1e-5)


class Deep(Pair):
    """Takes no smaller images, as an Inception does not."""

    def forward(self, x):
        assert min(x.shape[-2:]) >= 100
        return super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_is_tried_at_sizes_and_in_numbers_that_it_takes(dtype):
    assert fold_frozen_norms(freeze_batch_norm_2d(Deep()).to(dtype), 1) == 1


def test_weights_loaded_copied_and_moved_after_folding_are_those_that_count():
    model, other = (TimmBackbone(name="test_resnet", pretrained=False, frozen_stride=0) for _ in range(2))
    for buffer in other.body.buffers():
        buffer.uniform_(0.5, 2)
    images = torch.randn(1, 3, 64, 64)
    first, average = model(images, None)[0].values, copy.deepcopy(model)  # as the trainer averages
    average.load_state_dict(other.state_dict())
    assert torch.equal(average(images, None)[0].values, other(images, None)[0].values)
    assert torch.equal(model(images, None)[0].values, first)
    assert average.double()(images.double(), None)[0].values.dtype == torch.float64


def test_a_folded_backbone_compiles_into_one_graph():
    torch.manual_seed(0)
    body = TimmBackbone(name="test_resnet", pretrained=False).body
    images = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(body, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images)[0], body(images)[0], atol=1e-6)
