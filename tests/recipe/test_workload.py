"""Parameters and multiply-adds against counts made by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detrkit.compare.workload import measure_workload


class Attention(nn.Module):
    """Fused attention of 8 heads, 30 queries and 85 keys, over tokens made from the image's device alone."""

    def __init__(self, *, key_width: int, value_width: int, real: bool = False):
        super().__init__()
        self.key_width, self.value_width, self.real = key_width, value_width, real

    def forward(self, images):
        if self.real:
            assert images.sum().item() == 0  # a value, which the meta device does not have
        queries, keys = (torch.zeros(1, 8, n, self.key_width, device=images.device) for n in (30, 85))
        values = torch.zeros(1, 8, 85, self.value_width, device=images.device)
        return F.scaled_dot_product_attention(queries, keys, values)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("key_width", "value_width"), [(32, 32), (96, 32), (108, 32), (8, 64)])
def test_fused_attention_is_counted_also_where_values_are_of_another_width(key_width, value_width, real):
    work = measure_workload(Attention(key_width=key_width, value_width=value_width, real=real), height=32, width=32)
    assert work.total.multiply_adds == 8 * 30 * 85 * (key_width + value_width)


def test_convolutions_and_linear_layers_are_counted_once_a_multiply_add():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Flatten(2), nn.Linear(50, 7)
    )
    model[0].weight.requires_grad_(False)
    work = measure_workload(model, height=10, width=20)
    assert work.parts["0"].multiply_adds == (5 * 10) * 8 * (3 * 3 * 3)
    assert work.parts["3"].multiply_adds == 8 * 50 * 7
    assert work.total.multiply_adds == work.parts["0"].multiply_adds + work.parts["3"].multiply_adds
    assert (work.parts["0"].parameters, work.parts["0"].trainable) == (216, 0)
    assert (work.total.parameters, work.total.trainable) == (216 + 357, 357)
    assert work.uncounted == {"relu": 8 * 50}
    assert [part.name for part in work.outline()] == ["0", "3"]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def classes(self, features):
        return self.layer(features)


class Shared(nn.Module):
    """Calls a method of its head that is not `forward`, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.head = Head()
        self.again = self.head.layer

    def forward(self, images):
        features = images.mean((2, 3))
        return self.head.classes(features) + self.again(features)


def test_work_belongs_to_the_module_that_did_it_and_shared_parameters_count_once():
    work = measure_workload(Shared(), height=8, width=8)
    assert work.parts["head"].multiply_adds == work.total.multiply_adds == 2 * 3 * 5
    assert work.total.parameters == 3 * 5 + 5


class Encoder(nn.Module):
    """A transformer layer of torch over 10 tokens of 16 channels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, images):
        return self.layer(images.flatten()[: 10 * 16].reshape(1, 10, 16))


def test_multi_head_attention_is_counted_in_evaluation_too():
    projections, products, feedforward = 10 * 16 * 16 * 4, 2 * 10 * 10 * 16, 2 * 10 * 16 * 32
    work = measure_workload(Encoder(), height=32, width=32)
    assert work.total.multiply_adds == projections + products + feedforward


def test_measuring_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_workload(model, height=8, width=8)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()
