"""Sums of terms, Gaussians as channels, multi-head attention; twins of all forms stand in tests/twins."""

from dataclasses import replace

import pytest
import torch

from detrkit.attention.aligned import SemanticsAlignedAttention
from detrkit.attention.conditional import ConditionalSelfAttention
from detrkit.attention.gaussian import gaussian_key, gaussian_query, split_in_two
from detrkit.attention.head_gaussian import HeadGaussianTerm
from detrkit.attention.multihead import MultiHeadAttention, merge_heads, split_heads
from detrkit.attention.self_terms import SelfTerm, SelfTermSum
from detrkit.attention.summed import zero_channels
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


def test_the_first_layer_blends_places_in_where_there_are_some():
    assert attention(["content", "point"], True).first
    assert not attention(["content", "point"], False).first
    assert not attention(["content"], True).first


def test_removing_a_term_removes_its_parameters():
    def count(names):
        return sum(p.numel() for p in attention(names, False).parameters())

    full = count(list(TERMS))
    assert full - count(["content", "point", "side"]) == 2 * (WIDTH * WIDTH + WIDTH) + WIDTH * 4 * HEADS + 4 * HEADS
    assert full - count(["content", "point", "side_directed_gaussian"]) == 2 * WIDTH * WIDTH + WIDTH


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_a_gaussian_alone_is_all_that_says_where_queries_look(heads):
    """Four channels of keys, and values of 8 to 32."""
    content, position, reference, memory = scene()
    look = {"width": WIDTH, "heads": heads, "positions": (), "dropout": 0.0, "first": True}
    made = TermAttention(**look, terms=[SideDirectedGaussianTerm]).double().eval()
    term = made.named_terms["side_directed_gaussian"]
    logits = term(content, position, reference, memory) @ made.key_features(memory)["gaussian"].mT
    logits = logits.masked_fill(memory.mask[:, None, None], -torch.inf)
    value = split_heads(made.value(memory.tokens), heads)
    expected = made.out(merge_heads(logits.softmax(-1) @ value))
    torch.testing.assert_close(made(content, position, reference, memory), expected)


def test_no_terms_are_refused():
    with pytest.raises(UserError, match=r"^decoder\.cross_attention\.terms is empty"):
        attention([], False)


def test_a_gaussian_towards_sides_that_there_are_none_of():
    content, position, reference, memory = scene()
    term = SideDirectedGaussianTerm(width=WIDTH, heads=HEADS).double()
    with pytest.raises(UserError, match=r"^side_directed_gaussian needs references with sides"):
        term(content, position, Reference(reference.point), memory)


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


@pytest.mark.parametrize(("half", "bits"), [(torch.bfloat16, 16), (torch.float16, 21)])
def test_two_of_half_precision_keep_most_bits(half, bits):
    values = torch.randn(1000) * 100
    high, low = split_in_two(values, half)
    assert high.dtype == low.dtype == half
    # Below 2^-14 float16 has fewer bits, in steps of 2^-24.
    most = values.abs() * 2**-bits + (2**-25 if half == torch.float16 else 0)
    assert ((high.double() + low.double() - values.double()).abs() <= most).all()


@pytest.mark.parametrize(("half", "most"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_gaussian_survives_half_precision(half, most):
    """Strong Gaussians under autocast stay close to float32, which four channels of half precision do not."""
    content, position, reference, memory = scene(torch.float32, padded=False)
    module = attention(["content", "side_directed_gaussian"], False, torch.float32)
    with torch.no_grad():
        module.terms["side_directed_gaussian"].predict.layers[-1].weight.mul_(8)
        exact = module(content, position, reference, memory)
        with torch.autocast("cpu", half):
            coarse = module(content, position, reference, memory)
        assert coarse.dtype == half
        assert (coarse.float() - exact).abs().max() < most * exact.abs().max()


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


@pytest.mark.parametrize("extent", ["padded", "image"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_side_directed_gaussian_is_its_bias(scaled, extent):
    content, position, reference, memory = scene()
    term = SideDirectedGaussianTerm(width=WIDTH, heads=HEADS, scaled=scaled, extent=extent).double()
    if not scaled:
        reference = Reference(reference.point)
    key = term.make_key(width=WIDTH, heads=HEADS)(memory)
    found = (term(content, position, reference, memory) @ key.mT).softmax(-1).unflatten(-1, SHAPE)
    raw = term.predict(content)
    for b, h, n in ((0, 0, 0), (0, 3, 6), (1, 1, 2), (1, 2, 5)):
        cells = SHAPE[::-1] if extent == "padded" or b == 0 else (4, 3)  # (columns, rows) that are image
        bias = torch.zeros(SHAPE, dtype=torch.float64)
        for axis in (0, 1):
            u, w = raw[b, n, 2 * h + axis].tanh(), raw[b, n, 2 * HEADS + 2 * h + axis]
            center = reference.point[b, n, axis] * cells[axis] + u
            if scaled:
                side = reference.sides[b, n, 2 + axis] if u > 0 else reference.sides[b, n, axis]
                center = (reference.point[b, n, axis] + u * side) * cells[axis]
            away = torch.arange(SHAPE[1 - axis], dtype=torch.float64) + 0.5 - center
            part = -(w**2) * away**2 / 8
            bias += part[None, :] if axis == 0 else part[:, None]
        torch.testing.assert_close(found[b, h, n], bias.flatten().softmax(-1).view(SHAPE))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_twelve_channels_of_half_precision_keep_a_gaussian(autocast, half):
    """On a map so large that the cells' squares are no bfloat16 numbers either."""
    torch.manual_seed(0)
    shape = (25, 42)
    memory = Memory(torch.zeros(1, 25 * 42, WIDTH), torch.zeros(1, 25 * 42, WIDTH), (shape,))
    term = SideDirectedGaussianTerm(width=WIDTH, heads=HEADS)
    center, precision = torch.rand(1, HEADS, QUERIES, 2) * 40, torch.rand(1, HEADS, QUERIES, 2) * 4
    key = term.make_key(width=WIDTH, heads=HEADS)
    exact_queries, exact_keys = term.features(center, precision, memory), key(memory)
    assert exact_queries.dtype == exact_keys.dtype == torch.float32
    exact_queries, exact_keys = exact_queries.double(), exact_keys.double()
    if not autocast:
        memory = Memory(memory.tokens.to(half), memory.position, (shape,))
    with torch.autocast("cpu", half, enabled=autocast):
        queries, keys = term.features(center, precision, memory), key(memory)
    assert queries.shape[-1] == keys.shape[-1] == 12
    assert queries.dtype == keys.dtype == half
    away = (queries.double() @ keys.double().mT - exact_queries @ exact_keys.mT).abs()
    assert (away <= exact_queries.abs() @ exact_keys.abs().mT * 2**-14).all()  # bfloat16 itself has 8 bits, float16 11


@pytest.mark.parametrize("build", [MultiHeadAttention, ConditionalSelfAttention, TermAttention])
def test_dropout_is_for_training_alone(build):
    options = {
        MultiHeadAttention: {},
        ConditionalSelfAttention: {"positions": ("point", "side")},
        TermAttention: {"positions": ("point", "side"), "first": False, "terms": [ContentTerm]},
    }[build]
    content, position, reference, memory = scene()
    inputs = {
        MultiHeadAttention: (content, content, content),
        ConditionalSelfAttention: (content, position),
        TermAttention: (content, position, reference, memory),
    }[build]
    module, plain_one = (build(width=WIDTH, heads=HEADS, dropout=share, **options).double() for share in (0.5, 0.0))
    plain_one.load_state_dict(module.state_dict())
    expected = plain_one.train()(*inputs)
    assert not torch.allclose(module.train()(*inputs), expected)
    torch.testing.assert_close(module.eval()(*inputs), expected)


def test_channels_of_zeros_fill_up_to_eight_and_values_to_the_keys_width():
    assert [zero_channels(keys, 32) for keys in (4, 32, 36, 64, 128)] == [28, 0, 4 + 8, 32, 96]
    assert zero_channels(136, 32) == 0  # more than four times as wide: values stay
    assert zero_channels(130, 32) == 6


def test_channels_of_shared_keys():
    module = attention(list(TERMS), True)
    widths = {name: key.shape[-1] for name, key in module.key_features(scene()[3]).items()}
    assert widths == {"content": 8, "position": 8, "gaussian": 4}
    assert module.shared_channels(widths) == 8  # point and side have one key
    assert attention(["content", "point"], True).shared_channels(widths) == 0
    forms = module.product_forms(*scene())
    pairs = 2 * HEADS * QUERIES * SHAPE[0] * SHAPE[1]
    assert (forms.saved, forms.zeros) == (8 * pairs, (4 + 16) * pairs)  # 20 channels to 24, 8 of the values to 24


def test_a_self_term_is_told_the_sizes_and_stands_once():
    class Told(SelfTerm):
        relations = ("told",)

        def __init__(self, *, width, heads):
            super().__init__()
            self.told = width, heads

        def forward(self, content, position):
            return None

    terms = SelfTermSum(["relation", Told], width=WIDTH, heads=HEADS)
    assert [*terms.values()][1].told == (WIDTH, HEADS)
    assert terms.relations == ("relation", "told")
    with pytest.raises(UserError, match='the term "relation" stands twice'):
        SelfTermSum(["relation", Told, "relation"], width=WIDTH, heads=HEADS)


@pytest.mark.parametrize(
    ("first", "norm", "given", "remedy"),
    [
        (True, "queries", "entering", r"needs queries\.point_norm = true"),
        (True, "own", "read_from", r'needs "entering" in decoder\.positions'),
        (False, "queries", "read_from", r'needs "entering" in decoder\.positions'),
    ],
)
def test_what_a_gaussian_of_the_heads_reads(first, norm, given, remedy):
    term = HeadGaussianTerm(width=WIDTH, heads=HEADS, first=first, first_norm=norm)
    code = {name: torch.rand(2, QUERIES, WIDTH) for name in ("entering", "read_from")}
    embedded = torch.rand(2, QUERIES, WIDTH)
    read = term.read(QueryPosition({"learned": embedded}, code))
    if given == "entering":  # of the queries, which normed it
        assert torch.equal(read, code["read_from"])
    else:
        summed = code["entering"] + embedded
        torch.testing.assert_close(read, torch.nn.functional.layer_norm(summed, (WIDTH,)))
    with pytest.raises(UserError, match=remedy):
        term.read(QueryPosition({}, {given: code[given]}))


def test_a_box_is_resampled_where_it_lies_in_bfloat16_too():
    """A corner at cell 33.1 of 40 is at 33 or 33.25 in bfloat16."""
    torch.manual_seed(0)
    attention = SemanticsAlignedAttention(width=16, heads=2, dropout=0.0)
    rough = Memory(torch.randn(1, 1600, 16).bfloat16(), torch.zeros(1, 1600, 16), ((40, 40),))
    corners = torch.rand(1, 9, 2).repeat(1, 1, 2) * 0.9 + torch.tensor([0.0, 0.0, 0.06, 0.06])
    wide = replace(rough, tokens=rough.tokens.float())
    torch.testing.assert_close(attention.resample(corners, rough), attention.resample(corners, wide))
