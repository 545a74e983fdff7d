"""The attention of DETR, SMCA and Anchor DETR: other forms of it, and what each part asks for; twins: tests/twins."""

import pytest
import torch
from torch import nn

import detrkit
from detrkit.attention.head_gaussian import HeadGaussianTerm
from detrkit.attention.plain import PlainCrossAttention
from detrkit.attention.row_column import RowColumnAttention, RowColumnCrossAttention
from detrkit.errors import UserError
from detrkit.position import AxisPosition, SinePosition
from detrkit.structures import Memory, QueryPosition, Reference
from tests.small import SMALL

WIDTH, HEADS, QUERIES, SHAPE = 32, 4, 6, (5, 7)


@pytest.fixture(params=[True, False], ids=["padded", "whole"])
def memory(request):
    torch.manual_seed(0)
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 4:] = True, True
    tokens = torch.randn(2, SHAPE[0] * SHAPE[1], WIDTH, dtype=torch.float64)
    position = AxisPosition(width=WIDTH).double()
    inside = mask if request.param else None
    axes = position.axes(tokens.transpose(1, 2).unflatten(2, SHAPE), inside)
    codes = SinePosition(width=WIDTH)(tokens.transpose(1, 2).unflatten(2, SHAPE), inside)
    flat = mask.flatten(1) if request.param else None
    extent = torch.tensor([[7.0, 5.0], [3.4, 2.5]], dtype=torch.float64)
    return Memory(tokens, codes, (SHAPE,), flat, extent=extent, axes=axes)


def draw(*shape):
    return torch.randn(2, *shape, dtype=torch.float64)


def reference():
    return Reference(torch.rand(2, QUERIES, 2).double() * 0.6 + 0.2, torch.rand(2, QUERIES, 4).double() * 0.3 + 0.05)


def test_row_column_attention_sums_the_longer_axis_first_whichever_it_is(memory):
    module = RowColumnAttention(width=WIDTH, heads=HEADS).double()
    x, y = draw(QUERIES, WIDTH), draw(QUERIES, WIDTH)
    turned = memory.tokens.unflatten(1, SHAPE).transpose(1, 2).flatten(1, 2)
    mask = None if memory.mask is None else memory.mask.unflatten(1, SHAPE).transpose(1, 2).flatten(1)
    other = RowColumnAttention(width=WIDTH, heads=HEADS).double()
    qx, qy, kx, ky, v = module.in_proj_weight.chunk(5)
    other.load_state_dict({**module.state_dict(), "in_proj_weight": torch.cat((qy, qx, ky, kx, v))})
    axes = type(memory.axes)(x=memory.axes.y, y=memory.axes.x, of=memory.axes.of)
    torch.testing.assert_close(other(y, x, turned, axes, mask), module(x, y, memory.tokens, memory.axes, memory.mask))


def test_row_column_attention_names_the_position_part_that_it_needs(memory):
    plain = Memory(memory.tokens, memory.position, (SHAPE,), memory.mask)
    module = RowColumnCrossAttention(width=WIDTH, heads=HEADS, dropout=0.0).double()
    with pytest.raises(UserError, match=r'position\.type = "axes"'):
        module(draw(QUERIES, WIDTH), QueryPosition(), reference(), plain)


def test_axis_codes_are_those_of_the_cells_middles():
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[:, 4:], mask[:, :, 5:] = True, True
    part = AxisPosition(width=WIDTH).double()
    codes = part.axes(torch.zeros(1, 3, *SHAPE, dtype=torch.float64), mask)
    torch.testing.assert_close(codes.x[0, 1], part.code(torch.tensor(0.3, dtype=torch.float64)))
    torch.testing.assert_close(codes.y[0, 3], part.code(torch.tensor(0.875, dtype=torch.float64)))
    assert torch.equal(codes.x[0, 6], codes.x[0, 4])  # padding repeats the last


def test_plain_cross_attention_is_torchs(memory):
    module = PlainCrossAttention(width=WIDTH, heads=HEADS, dropout=0.0, first=False).double()
    torchs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    torchs.load_state_dict(module.attention.state_dict())
    content, embedding = draw(QUERIES, WIDTH), draw(QUERIES, WIDTH)
    found = module(content, QueryPosition({"learned": embedding}), reference(), memory)
    keys = memory.tokens + memory.position
    expected, _ = torchs(content + embedding, keys, memory.tokens, key_padding_mask=memory.mask)
    torch.testing.assert_close(found, expected)


def test_head_gaussians_start_with_precision_one_and_name_what_they_need():
    term = HeadGaussianTerm(width=WIDTH, heads=HEADS, first=True, first_norm="queries")
    assert (term.scale(torch.randn(3, WIDTH)) == 1).all()
    with pytest.raises(UserError, match="point_norm"):
        term.read(QueryPosition())
    with pytest.raises(UserError, match="entering"):
        HeadGaussianTerm(width=WIDTH, heads=HEADS, first=False).read(QueryPosition())


def test_anchor_detrs_layers_start_as_copies_drawn_as_linear_layers_are():
    """Section 9 of its fact sheet: RCDA's packed matrix Xavier-uniform as one, the rest PyTorch's own."""
    recipe = detrkit.load_recipe("anchor_detr_r50_50ep", [*SMALL, "detector.classes=3"])
    detector = detrkit.build_detector(recipe)
    width, hidden = 32, 32
    for layers in (detector.encoder.layers, detector.decoder.layers):
        first, *others = (dict(layer.named_parameters()) for layer in layers)
        assert all(torch.equal(first[name], other[name]) for other in others for name in first)
        bounds = {name: p.abs().max().item() for name, p in first.items() if p.dim() == 2}
        for name, bound in bounds.items():
            rows, columns = first[name].shape
            packed = name.endswith("in_proj_weight")
            expected = (6 / (rows + columns)) ** 0.5 if packed else columns**-0.5
            assert bound == pytest.approx(expected, rel=0.02), name
        assert {len(first[name]) for name in bounds} >= {5 * width, hidden, width}
