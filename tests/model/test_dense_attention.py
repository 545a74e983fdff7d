"""The attention of DETR, SMCA, SAM-DETR and Anchor DETR against readable twins in float64."""

import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

import detrkit
from detrkit.attention.aligned import SemanticsAlignedAttention
from detrkit.attention.head_gaussian import HeadGaussianTerm
from detrkit.attention.plain import PlainCrossAttention
from detrkit.attention.row_column import RowColumnAttention, RowColumnCrossAttention
from detrkit.attention.summed import fused_attention
from detrkit.errors import UserError
from detrkit.position import AxisPosition, SinePosition, sine_code
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


def attend(logits, value, mask):
    """softmax over cells of logits [B, H, N, L] and values [B, L, D], heads merged."""
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None], float("-inf"))
    value = value.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)


def middles(first=0.5):
    """(x, y) of each cell [L, 2], counted in cells from `first`."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + first for n in SHAPE), indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def test_row_column_attention_is_one_softmax_over_cells_with_added_logits(memory):
    """exp(a) exp(b) = exp(a + b): the two softmaxes are one over the rectangle of cells that is no padding."""
    module = RowColumnAttention(width=WIDTH, heads=HEADS).double()
    nn.init.normal_(module.in_proj_bias)
    x, y = draw(QUERIES, WIDTH), draw(QUERIES, WIDTH)
    projections = [
        lambda v, w=w, b=b: v @ w.T + b
        for w, b in zip(module.in_proj_weight.chunk(5), module.in_proj_bias.chunk(5), strict=True)
    ]
    cells = memory.tokens.unflatten(1, SHAPE)
    column = projections[2](cells + memory.axes.x[:, None]).mean(1)  # [B, w, D]
    row = projections[3](cells + memory.axes.y[:, :, None]).mean(2)  # [B, h, D]

    def logits(query, key):
        query, key = (v.unflatten(-1, (HEADS, -1)).transpose(1, 2) for v in (query, key))
        return query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5

    to_column, to_row = logits(projections[0](x), column), logits(projections[1](y), row)
    added = (to_row[..., :, None] + to_column[..., None, :]).flatten(-2)
    expected = module.out_proj(attend(added, projections[4](memory.tokens), memory.mask))
    torch.testing.assert_close(module(x, y, memory.tokens, memory.axes, memory.mask), expected)


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


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_head_gaussians_are_a_bias_on_the_logits(memory, shift):
    """Shifted by half a cell, cells count from 0, as in SMCA's own code."""
    term = HeadGaussianTerm(width=WIDTH, heads=HEADS, first=False, shift=shift).double()
    nn.init.normal_(term.scale.weight, std=0.1)
    place, entering, embedding = reference(), draw(QUERIES, WIDTH), draw(QUERIES, WIDTH)
    position = QueryPosition({"learned": embedding}, {"entering": entering})
    features = term(draw(QUERIES, WIDTH), position, place, memory)
    read = term.norm(entering + embedding)
    offset = term.offset(read).unflatten(-1, (HEADS, 2))
    scale = term.scale(read).unflatten(-1, (HEADS, 2)).square()
    center = place.point[:, :, None] * memory.extent[:, None, None] + offset
    bias = -(scale[..., None, :] * (center[..., None, :] - middles(0.5 - shift)) ** 2).sum(-1) / 8  # [B, N, H, L]
    value = draw(SHAPE[0] * SHAPE[1], WIDTH)
    found = fused_attention(
        [features],
        [term.make_key(width=WIDTH, heads=HEADS)(memory)],
        value.unflatten(-1, (HEADS, -1)).transpose(1, 2),
        memory.mask,
        dropout=0.0,
    )
    torch.testing.assert_close(found.transpose(1, 2).flatten(2), attend(bias.transpose(1, 2), value, memory.mask))


def test_head_gaussians_start_with_precision_one_and_name_what_they_need():
    term = HeadGaussianTerm(width=WIDTH, heads=HEADS, first=True, first_norm="queries")
    assert (term.scale(torch.randn(3, WIDTH)) == 1).all()
    with pytest.raises(UserError, match="point_norm"):
        term.read(QueryPosition())
    with pytest.raises(UserError, match="entering"):
        HeadGaussianTerm(width=WIDTH, heads=HEADS, first=False).read(QueryPosition())


@pytest.mark.parametrize("gaussian", [False, True])
def test_semantics_aligned_attention(memory, gaussian):
    """Head by head: read the 7 x 7 region at one place by hand, then plain attention of full width with a bias."""
    module = SemanticsAlignedAttention(width=WIDTH, heads=HEADS, dropout=0.0, gaussian=gaussian).double()
    content, box = draw(QUERIES, WIDTH), reference()
    center = Reference(box.point, torch.cat((box.sides[..., :2], box.sides[..., :2]), dim=-1))
    size = center.size("the test")
    valid = torch.tensor([[7.0, 5.0], [7.0, 5.0] if memory.mask is None else [4.0, 3.0]], dtype=torch.float64)
    corners = center.corners("the test") * valid.repeat(1, 2)[:, None]
    regions = roi_align(memory.as_map(), list(corners), 7, sampling_ratio=-1, aligned=True).unflatten(0, (2, QUERIES))
    named = module.places(regions.flatten(0, 1)).unflatten(0, (2, QUERIES))
    expected = []
    for head in range(HEADS):
        place = named[..., 2 * head : 2 * head + 2].tanh()
        at = (place + 1) / 2 * 7 - 0.5  # in cells of the region, the first middle at 0
        columns, rows = (
            (1 - (at[..., axis, None] - torch.arange(7)).abs()).clamp(min=0) for axis in (0, 1)
        )  # bilinear weights
        found = torch.einsum("bni,bnj,bncij->bnc", rows, columns, regions)
        spot = center.point + size / 2 * place
        code = sine_code(spot.flip(-1), WIDTH // 2, 10000.0)
        gates = [
            gate(content).sigmoid()[..., head * WIDTH : (head + 1) * WIDTH]
            for gate in (module.content_gate, module.position_gate)
        ]
        query = module.query(found * gates[0]) + module.query_position(code * gates[1])
        key = module.key(memory.tokens) + module.key_position(memory.position)
        logits = query @ key.transpose(1, 2) / WIDTH**0.5
        if gaussian:
            spread = named[..., 2 * HEADS + 2 * head : 2 * HEADS + 2 * head + 2].square()
            distance = (spot * valid[:, None])[:, :, None] - middles()
            logits = logits - (spread[:, :, None] * distance**2).sum(-1) / 8
        expected.append(logits)
    mixed = attend(torch.stack(expected, dim=1), module.value(memory.tokens), memory.mask)
    torch.testing.assert_close(module(content, QueryPosition(), center, memory), module.out(mixed))


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
