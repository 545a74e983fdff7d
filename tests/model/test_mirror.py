"""A mirrored image with mirrored references gives what the image gives: left is to right as right is to left."""

import copy

import pytest
import torch

from detrkit.attention.deformable import DeformableCrossAttention
from detrkit.sap.terms import SideDirectedGaussianTerm
from detrkit.structures import Memory, QueryPosition, Reference

WIDTH, HEADS, QUERIES = 8, 2, 6


def mirrored(reference, axis):
    """References in an image that is turned over along x (0) or y (1)."""
    point = reference.point.clone()
    point[..., axis] = 1 - point[..., axis]
    if reference.sides is None:
        return Reference(point)
    order = [2, 1, 0, 3] if axis == 0 else [0, 3, 2, 1]
    return Reference(point, reference.sides[..., order])


def turned(memory, axis):
    """The memory of that image."""
    maps = [
        part.unflatten(1, shape).flip(2 - axis).flatten(1, 2)
        for part, shape in zip(memory.split(memory.tokens), memory.shapes, strict=True)
    ]
    return Memory(torch.cat(maps, dim=1), memory.position, memory.shapes)


def looking_back(layer, axis, numbers):
    """The linear layer with the sign of its offsets along an axis changed; `numbers` (x, y) pairs are offsets."""
    with torch.no_grad():
        rows = torch.arange(numbers) * 2 + axis
        layer.weight[rows] *= -1
        layer.bias[rows] *= -1


def scene(shapes, sides):
    torch.manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    tokens = torch.randn(2, cells, WIDTH, dtype=torch.float64)
    content = torch.randn(2, QUERIES, WIDTH, dtype=torch.float64)
    point = torch.rand(2, QUERIES, 2, dtype=torch.float64)
    given = torch.rand(2, QUERIES, 4, dtype=torch.float64) * 0.4 if sides else None
    return content, Reference(point, given), Memory(tokens, torch.zeros_like(tokens), shapes)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sides", [False, True])
@pytest.mark.parametrize("shapes", [((4, 6),), ((4, 6), (2, 3))])
def test_deformable_attention(shapes, sides, axis):
    content, reference, memory = scene(shapes, sides)
    made = DeformableCrossAttention(width=WIDTH, heads=HEADS, levels=len(shapes), points=3).double()
    for layer in (made.attention.sampling_offsets, made.attention.attention_weights):
        torch.nn.init.normal_(layer.weight, std=0.3)
    back = copy.deepcopy(made)
    looking_back(back.attention.sampling_offsets, axis, HEADS * len(shapes) * 3)
    found = made(content, QueryPosition(), reference, memory)
    torch.testing.assert_close(
        back(content, QueryPosition(), mirrored(reference, axis), turned(memory, axis)), found, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scaled", [False, True])
def test_side_directed_gaussians(scaled, axis):
    content, reference, memory = scene(((4, 6),), True)
    made = SideDirectedGaussianTerm(width=WIDTH, heads=HEADS, scaled=scaled).double()
    back = copy.deepcopy(made)
    looking_back(back.predict.last, axis, HEADS)
    key = made.make_key(width=WIDTH, heads=HEADS)(memory)
    found, other = (
        (term(content, QueryPosition(), places, memory) @ key.mT).softmax(-1).unflatten(-1, memory.shape)
        for term, places in ((made, reference), (back, mirrored(reference, axis)))
    )
    torch.testing.assert_close(other.flip(-1 - axis), found, rtol=1e-9, atol=1e-12)
