"""Where SAP-DETR's queries start."""

import math

import pytest
import torch
from torch import nn

from detrkit.sap.geometry import SalientPointGeometry
from detrkit.sap.queries import SalientGridQueries
from detrkit.structures import Memory, QueryLimit

WIDTH = 16


def made(grid=(3, 4), **options):
    torch.manual_seed(0)
    return SalientGridQueries(width=WIDTH, geometry=SalientPointGeometry(), grid=grid, **options)


def memory():
    torch.manual_seed(1)
    tokens = torch.randn(2, 30, WIDTH)
    return Memory(tokens, torch.zeros_like(tokens), ((5, 6),))


def test_a_query_stands_at_each_corner_of_the_grid():
    found = made(content="zero", initial_side=0.2, side_spread=0.0)(memory())
    corners = [(max(j / 4, 1e-3), max(i / 3, 1e-3)) for i in range(3) for j in range(4)]
    torch.testing.assert_close(found.reference.point, torch.tensor([corners] * 2), rtol=0, atol=2e-6)
    assert torch.equal(found.reference.origin, found.reference.point)
    torch.testing.assert_close(found.reference.cell, torch.tensor([1 / 4, 1 / 3]).expand(2, 12, 2))
    torch.testing.assert_close(found.reference.sides, torch.full((2, 12, 4), 0.2))
    assert torch.equal(found.content, torch.zeros(2, 12, WIDTH))


def test_groups_share_the_grid_and_own_their_sides():
    queries = made(groups=3)
    assert queries.limit == QueryLimit(12, "queries.grid")
    alone, found = queries(memory()), queries(memory(), groups=2)
    torch.testing.assert_close(found.reference.sides[:, :12], alone.reference.sides)
    assert not torch.allclose(found.reference.sides[:, 12:], alone.reference.sides)
    for one, both in (
        (alone.content, found.content),
        (alone.reference.point, found.reference.point),
        (alone.reference.origin, found.reference.origin),
    ):
        torch.testing.assert_close(both, torch.cat((one, one), dim=1))


def test_content_is_of_each_image_s_memory():
    content = made()(memory()).content
    assert content.shape == (2, 12, WIDTH)
    assert (content >= 0).all()
    assert not torch.equal(content[0], content[1])


@pytest.mark.parametrize(
    ("options", "side", "spread"), [({}, 0.5, 1.0), ({"initial_side": 0.2, "side_spread": 0.5}, 0.2, 0.5)]
)
def test_draws_at_the_start(options, side, spread):
    queries = made((40, 50), **options)
    assert queries.sides.mean().item() == pytest.approx(math.log(side / (1 - side)), abs=0.05)
    assert queries.sides.std().item() == pytest.approx(spread, abs=0.05)
    for layer in queries.content.blocks:
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert not layer.bias.any()
