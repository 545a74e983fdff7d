"""Sums of terms, Gaussians as channels, multi-head attention; twins of all forms stand in tests/twins."""

import pytest
import torch

from detrkit.attention.gaussian import gaussian_key, gaussian_query, split_bfloat16
from detrkit.attention.multihead import MultiHeadAttention
from detrkit.attention.term_sum import TermAttention
from detrkit.attention.terms import ContentTerm, PointTerm
from detrkit.errors import UserError
from detrkit.sap.terms import SideDirectedGaussianTerm, SideTerm
from detrkit.structures import Memory, QueryPosition, Reference

WIDTH, HEADS, QUERIES, SHAPE = 32, 4, 7, (5, 6)


TERMS = {
    "content": ContentTerm,
    "point": PointTerm,
    "side": SideTerm,
    "side_directed_gaussian": SideDirectedGaussianTerm,
}


def scene(dtype=torch.float64, padded=True):
    torch.manual_seed(0)
    cells = SHAPE[0] * SHAPE[1]
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 4:] = True, True
    tokens, position = torch.randn(2, cells, WIDTH, dtype=dtype), torch.randn(2, cells, WIDTH, dtype=dtype)
    memory = Memory(tokens, position, (SHAPE,), mask.flatten(1) if padded else None)
    content = torch.randn(2, QUERIES, WIDTH, dtype=dtype)
    codes = {n: torch.randn(2, QUERIES, f * WIDTH, dtype=dtype) for n, f in (("point", 1), ("side", 2))}
    embeddings = {n: torch.randn(2, QUERIES, WIDTH, dtype=dtype) for n in ("point", "side")}
    reference = Reference(torch.rand(2, QUERIES, 2, dtype=dtype), torch.rand(2, QUERIES, 4, dtype=dtype))
    return content, QueryPosition(embeddings, codes), reference, memory


def attention(names, first, dtype=torch.float64):
    torch.manual_seed(1)
    module = TermAttention(
        width=WIDTH,
        heads=HEADS,
        positions=("point", "side"),
        dropout=0.0,
        first=first,
        terms=[TERMS[name] for name in names],
    )
    return module.to(dtype).eval()


def test_removing_a_term_removes_its_parameters():
    def count(names):
        return sum(p.numel() for p in attention(names, False).parameters())

    full = count(list(TERMS))
    assert full - count(["content", "point", "side"]) == 2 * (WIDTH * WIDTH + WIDTH) + WIDTH * 4 * HEADS + 4 * HEADS
    assert full - count(["content", "point", "side_directed_gaussian"]) == 2 * WIDTH * WIDTH + WIDTH


def test_gaussian_channels_give_the_gaussian_up_to_a_constant():
    torch.manual_seed(2)
    shape = (25, 42)
    center, precision = torch.rand(50, 2) * 40, torch.rand(50, 2) * 3
    logits = gaussian_query(center, precision, shape) @ gaussian_key(shape, center.device, torch.float32).T
    y, x = torch.meshgrid(torch.arange(25) + 0.5, torch.arange(42) + 0.5, indexing="ij")
    exact = -(
        precision[:, 0, None].double() * (x.flatten().double() - center[:, 0, None].double()) ** 2
        + precision[:, 1, None].double() * (y.flatten().double() - center[:, 1, None].double()) ** 2
    )
    assert torch.allclose(logits.double().softmax(-1), exact.softmax(-1), atol=2e-4)


def test_split_bfloat16_keeps_sixteen_bits():
    values = torch.randn(1000) * 100
    high, low = split_bfloat16(values)
    assert high.dtype == low.dtype == torch.bfloat16
    assert ((high.double() + low.double() - values.double()).abs() <= values.abs() * 2**-16).all()


def test_gaussian_survives_bfloat16():
    """Strong Gaussians under autocast stay close to float32, which four bfloat16 channels do not."""
    content, position, reference, memory = scene(torch.float32, padded=False)
    module = attention(["content", "side_directed_gaussian"], False, torch.float32)
    with torch.no_grad():
        module.terms["side_directed_gaussian"].predict.layers[-1].weight.mul_(8)
        exact = module(content, position, reference, memory)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = module(content, position, reference, memory)
        assert coarse.dtype == torch.bfloat16
        assert (coarse.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_a_missing_code_is_named():
    content, position, reference, memory = scene()
    position = QueryPosition(position.embeddings, {})
    with pytest.raises(UserError, match="needs a query position that gives the code 'point'"):
        attention(["content", "point"], False)(content, position, reference, memory)


def test_multihead_equals_torch():
    torch.manual_seed(3)
    ours = MultiHeadAttention(width=WIDTH, heads=HEADS).double()
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x, memory = torch.randn(2, 5, WIDTH).double(), torch.randn(2, 9, WIDTH).double()
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 6:] = True
    expected = theirs(x, memory, memory, key_padding_mask=mask, need_weights=False)[0]
    assert torch.allclose(ours(x, memory, memory, mask), expected)
    assert torch.allclose(ours(x, x, x), theirs(x, x, x, need_weights=False)[0])
