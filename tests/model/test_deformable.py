"""Deformable attention, its encoder against explicit loops in float64, and the levels that it reads."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from detrkit.attention.deformable import DeformableAttention, DeformableCrossAttention, cells, star
from detrkit.encoders.deformable import DeformableEncoder
from detrkit.errors import UserError
from detrkit.position import SinePosition
from detrkit.structures import FeatureMap, Memory, QueryPosition, Reference
from tests.twins.cross import sampled, share

WIDTH, HEADS, POINTS, QUERIES = 8, 2, 3, 4
SHAPES = ((5, 7), (3, 4), (2, 2))


def memory(shapes=SHAPES, padded=True, width=WIDTH) -> Memory:
    """Two images; the second fills about two thirds of each level."""
    torch.manual_seed(0)
    masks = []
    for h, w in shapes:
        mask = torch.zeros(2, h, w, dtype=torch.bool)
        mask[1, math.ceil(0.6 * h) :], mask[1, :, math.ceil(0.7 * w) :] = True, True
        masks.append(mask.flatten(1))
    cells = sum(h * w for h, w in shapes)
    tokens, position = torch.randn(2, 2, cells, width, dtype=torch.float64)
    return Memory(tokens, position, shapes, torch.cat(masks, 1) if padded else None)


def randomised(module: nn.Module) -> nn.Module:
    """Every weight random, so that nothing hides behind a start of zero."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def test_a_box_is_sampled_at_half_its_sides_over_the_points():
    """The published form for boxes: offset / K * (w, h) / 2."""
    held = memory()
    module = randomised(DeformableCrossAttention(width=WIDTH, heads=HEADS, levels=3, points=POINTS))
    content = torch.randn(2, QUERIES, WIDTH, dtype=torch.float64)
    boxes = torch.rand(2, QUERIES, 4).double()
    half = boxes[..., 2:] / 2
    found = module(content, QueryPosition(), Reference(boxes[..., :2], torch.cat((half, half), -1)), held)
    ratios = held.valid_ratios[:, None, None, :, None]
    steps = module.attention.offsets(content) / POINTS * (boxes[:, :, None, None, None, 2:] * ratios) * 0.5
    expected = module.attention(content, boxes[:, :, None, None, None, :2] * ratios + steps, held)
    assert torch.allclose(found, expected, atol=1e-12)


class NoPosition(nn.Module):
    def forward(self, values, mask):
        batch, _, h, w = values.shape
        return torch.zeros(batch, h * w, WIDTH, dtype=values.dtype)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_an_encoder_layer_is_what_the_loops_give(padded):
    encoder = DeformableEncoder(
        channels=(6, 5), width=WIDTH, heads=HEADS, position=NoPosition(), layers=1, feedforward=12, points=POINTS
    )
    randomised(encoder)
    torch.manual_seed(3)
    mask = torch.zeros(2, 40, 56, dtype=torch.bool)
    mask[1, 24:], mask[1, :, 36:] = True, True
    features = []
    for channels, (h, w) in ((6, (5, 7)), (5, (3, 4))):
        rows, columns = torch.arange(h) * 40 // h, torch.arange(w) * 56 // w
        values = torch.randn(2, channels, h, w, dtype=torch.float64)
        features.append(FeatureMap(values, mask[:, rows][:, :, columns] if padded else None, mask if padded else None))
    found = encoder(features)
    start = encoder.inputs(features)
    assert start.shapes == ((5, 7), (3, 4))
    cells = [(level, i, j) for level, (h, w) in enumerate(start.shapes) for i in range(h) for j in range(w)]

    def place(b, n, level, offset):
        own, i, j = cells[n]
        h, w = start.shapes[own]
        center = torch.tensor([(j + 0.5) / w, (i + 0.5) / h]) / share(start, b, own)
        h, w = start.shapes[level]
        return center * share(start, b, level) + offset / torch.tensor([w, h])

    layer = encoder.layers[0]
    looked = [
        [
            sampled(layer.self_attention, start, b, query, lambda *at, b=b, n=n: place(b, n, *at))
            for n, query in enumerate(start.tokens[b] + start.position[b])
        ]
        for b in range(2)
    ]
    x = start.tokens + torch.stack([torch.stack(row) for row in looked])
    x = layer.norm1(x)
    x = layer.norm2(x + layer.feedforward(x))
    assert torch.allclose(found.tokens, x, atol=1e-9)


def test_gradients_reach_values_places_and_weights():
    held = memory(SHAPES[:2], padded=False)
    module = randomised(DeformableAttention(width=WIDTH, heads=HEADS, levels=2, points=POINTS))
    content = torch.randn(2, 2, WIDTH, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(2, 2, HEADS, 2, POINTS, 2, dtype=torch.float64, requires_grad=True)
    tokens = held.tokens[:, :47].clone().requires_grad_()

    def run(content, locations, tokens):
        return module(content, locations, Memory(tokens, held.position, SHAPES[:2]))

    assert torch.autograd.gradcheck(run, (content, locations, tokens), fast_mode=True)


def test_heads_start_looking_their_own_way():
    offsets = star(8, 4)
    assert offsets[0].tolist() == [[1, 0], [2, 0], [3, 0], [4, 0]]
    assert torch.allclose(offsets[:, 3].abs().amax(-1), torch.full((8,), 4.0))
    assert torch.allclose(offsets[1, 0], torch.tensor([1.0, 1.0]))
    module = DeformableAttention(width=16, heads=8, levels=2, points=4)
    assert torch.allclose(module.offsets(torch.randn(1, 3, 16)), offsets[:, None].expand(1, 3, 8, 2, 4, 2))
    assert not module.attention_weights.weight.any()


def test_a_whole_transformer_keeps_that_start():
    encoder = DeformableEncoder(channels=(16,), width=16, heads=8, position=SinePosition(width=16), layers=2)
    for layer in encoder.layers:
        assert not layer.self_attention.sampling_offsets.weight.any()
        assert torch.allclose(layer.self_attention.sampling_offsets.bias[:2], torch.tensor([1.0, 0.0]))
        assert layer.feedforward.linear1.weight.std() > 0


def test_extra_levels_halve_the_last_and_follow_the_pixels():
    encoder = DeformableEncoder(
        channels=(6, 5), width=16, heads=2, position=SinePosition(width=16), layers=0, extra_levels=2
    )
    mask = torch.zeros(2, 96, 160, dtype=torch.bool)
    mask[1, 50:], mask[1, :, 100:] = True, True
    features = [
        FeatureMap(torch.randn(2, c, h, w), mask[:, :: 96 // h, :: 160 // w], mask)
        for c, h, w in ((6, 12, 20), (5, 6, 10))
    ]
    held = encoder(features)
    assert encoder.levels == 4
    assert held.shapes == ((12, 20), (6, 10), (3, 5), (2, 3))
    last = held.split(held.mask)[3].unflatten(1, (2, 3))
    assert last[1].tolist() == [[False, False, True], [False, False, True]]  # pixel rows 0, 48; columns 0, 53, 106
    assert encoder.inputs.vectors.shape == (4, 16)


@pytest.mark.parametrize(("vectors", "shape"), [("several", None), ("always", (1, 16))])
def test_level_vectors_of_one_level(vectors, shape):
    encoder = DeformableEncoder(
        channels=(5,), width=16, heads=2, position=SinePosition(width=16), layers=0, level_vectors=vectors
    )
    held = encoder([FeatureMap(torch.randn(1, 5, 3, 4), None)])
    code = SinePosition(width=16)(torch.zeros(1, 16, 3, 4), None)
    if shape is None:
        assert encoder.inputs.vectors is None
        assert torch.equal(held.position, code)
    else:
        assert encoder.inputs.vectors.shape == shape
        assert torch.allclose(held.position, code + encoder.inputs.vectors[0])


def test_one_map_is_asked_of_several_levels():
    held = memory()
    assert memory(SHAPES[:1]).shape == SHAPES[0]
    with pytest.raises(UserError, match=r"gives 3 levels.*backbone\.levels = \[-1\]"):
        held.as_map()


@pytest.mark.parametrize("levels", [1, 4])
def test_a_memory_of_other_levels_than_it_was_built_for_is_named(levels):
    look = DeformableCrossAttention(width=32, heads=4, levels=levels)
    content, points, tokens = torch.randn(1, 5, 32), torch.rand(1, 5, 2), torch.randn(1, 51, 32)
    with pytest.raises(UserError, match=f"was built with levels = {levels}, and the memory has 3"):
        look(content, QueryPosition(), Reference(points), Memory(tokens, tokens, SHAPES))


def test_centers_and_ratios():
    held = memory(SHAPES[:1])
    exact = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(
        held.valid_ratios, torch.tensor([[[1, 1]], [[5 / 7, 0.6]]], dtype=torch.float64), **exact
    )
    centers = held.centers().unflatten(1, SHAPES[0])
    torch.testing.assert_close(centers[0, 0, 0].tolist(), [0.5 / 7, 0.1], **exact)
    torch.testing.assert_close(centers[1, 2, 4].tolist(), [0.9, 2.5 / 3], **exact)
    assert (centers[1, 3:, 5:] > 1).all()


@pytest.mark.parametrize("padded", [True, False])
def test_shares_of_a_map_are_float32_beside_codes_in_bfloat16(padded):
    """Codes that a network makes (position "axes") are bfloat16 under autocast, and 1 / 7 is not the same there."""
    exact = memory(padded=padded)
    rough = replace(exact, tokens=exact.tokens.bfloat16(), position=exact.position.bfloat16())
    for measure in (lambda m: m.valid_ratios, cells, Memory.centers):
        assert measure(rough).dtype == torch.float32
        torch.testing.assert_close(measure(rough).double(), measure(exact), rtol=1e-6, atol=0)
