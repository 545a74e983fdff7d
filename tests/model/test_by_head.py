"""Attention of one head after another by oneDNN: its numbers, when it is taken, and what no sum of terms ever holds."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrkit import onednn
from detrkit.attention import by_head, written_out
from detrkit.attention.summed import fused_attention
from detrkit.attention.term_sum import TermAttention
from detrkit.dropout import draw
from detrkit.structures import Memory, QueryPosition, Reference

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"),
    pytest.mark.usefixtures("_one_thread"),
]

PRODUCT = "mkldnn::_linear_pointwise"
B, H, N, L, E, F = 2, 3, 40, 50, 24, 8


@pytest.fixture(autouse=True)
def _enough(monkeypatch):
    monkeypatch.setattr(onednn, "ENOUGH", N * L * E)


def tensors(dtype=torch.float32):
    """Queries and keys in two parts, one of the keys common to all images and heads; values as heads are split."""
    torch.manual_seed(0)
    queries = [torch.randn(B, H, N, 16, dtype=dtype), torch.randn(B, H, N, 8, dtype=dtype)]
    keys = [torch.randn(B, H, L, 16, dtype=dtype), torch.randn(1, 1, L, 8, dtype=dtype)]
    value = torch.randn(B, L, H * F, dtype=dtype).unflatten(-1, (H, F)).transpose(1, 2)
    mask = torch.zeros(B, L, dtype=torch.bool)
    mask[1, 30:] = True
    return queries, keys, value, mask


def counted(run):
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        run()
    return sum(event.count for event in watched.key_averages() if event.key == PRODUCT)


@pytest.mark.parametrize("padded", [True, False])
def test_it_is_softmax_of_the_sum_with_its_gradients(padded, faster):
    queries, keys, value, mask = tensors()
    leaves = [x.requires_grad_() for x in (*queries, *keys, value)]
    out = fused_attention(queries, keys, value, mask if padded else None, 0.0)
    factor = torch.randn(B, N, H, F).transpose(1, 2)  # as the gradient comes where heads were merged
    found = [out, *torch.autograd.grad((out * factor).sum(), leaves)]

    exact = [x.detach().double().requires_grad_() for x in leaves]
    logits = sum(q @ k.transpose(-1, -2) for q, k in zip(exact[:2], exact[2:4], strict=True))
    if padded:
        logits = logits.masked_fill(mask[:, None, None], -torch.inf)
    expected = logits.softmax(-1) @ exact[4]
    expected = [expected, *torch.autograd.grad((expected * factor).sum(), exact)]
    for ours, twin in zip(found, expected, strict=True):
        assert torch.allclose(ours.double(), twin, rtol=1e-5, atol=2e-6 * twin.abs().max().item())


def test_it_is_taken_where_that_is_faster(faster):
    queries, keys, value, mask = tensors()
    value.requires_grad_()
    products = counted(lambda: fused_attention(queries, keys, value, mask, 0.0).sum().backward())
    assert products == (7 * B * H if faster else 0)  # two forward; five backward


@pytest.mark.usefixtures("_faster")
def test_it_is_not_taken_for_what_it_cannot_do():
    queries, keys, value, mask = tensors()

    def on_threads(count, part=slice(None)):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            fused_attention(queries[part], keys[part], value, mask, 0.0)
        finally:
            torch.set_num_threads(before)

    others = {
        "many threads": lambda: on_threads(3),
        "two threads, narrow keys": lambda: on_threads(2, slice(1, None)),
        "few pairs": lambda: fused_attention([q[:, :, 1:] for q in queries], keys, value, mask, 0.0),
        "float64": lambda: fused_attention(*tensors(torch.float64), 0.0),
    }
    assert {name: counted(run) for name, run in others.items()} == dict.fromkeys(others, 0)


@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16_all_between_is_float32(autocast, faster):
    """As the mixed forward pass gives it: queries of a Gaussian term in float32, all else in bfloat16."""
    queries, keys, value, mask = tensors()
    given = [x.to(torch.bfloat16) for x in (queries[0], keys[0], value)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = fused_attention([given[0], queries[1]], [given[1], keys[1]], given[2], mask, 0.0)
    assert out.dtype == torch.bfloat16
    exact = [given[0].double() @ given[1].double().transpose(-1, -2), queries[1].double() @ keys[1].double().mT]
    weights = sum(exact).masked_fill(mask[:, None, None], -torch.inf).softmax(-1)
    expected = (weights @ given[2].double()).to(torch.bfloat16)
    apart = (out != expected).float().mean()  # by the last rounding; the fused kernel rounds queries, too
    assert apart < (0.01 if faster else 0.9)
    assert torch.allclose(out.float(), expected.float(), atol=2e-2)


SEEN = {  # what queries see, of B images, H heads
    "all": lambda: None,
    "what is not padded": lambda: torch.rand(B, 1, 1, L) < 0.7,
    "their own": lambda: torch.rand(N, L) < 0.5,
    "their own in each image": lambda: torch.rand(B, 1, N, L) < 0.5,
}


@pytest.mark.parametrize("seen", SEEN)
def test_attention_of_any_kind_is_pytorch_s(seen, faster):
    torch.manual_seed(0)
    split = [torch.randn(B, size, H * E).unflatten(-1, (H, E)).transpose(1, 2) for size in (N, L, L)]
    rows, allowed = [x.requires_grad_() for x in split], SEEN[seen]()
    if allowed is not None:
        allowed[..., 0] = True  # each sees something
    found = by_head.attend(*rows, allowed)
    exact = [x.detach().double().requires_grad_() for x in rows]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, allowed)
    factor = torch.randn_like(found)
    for ours, twin in zip(
        [found, *torch.autograd.grad((found * factor).sum(), rows)],
        [expected, *torch.autograd.grad((expected * factor).sum(), exact)],
        strict=True,
    ):
        assert torch.allclose(ours.double(), twin, rtol=1e-5, atol=2e-6 * twin.abs().max().item())
    assert counted(lambda: by_head.attend(*rows, allowed)) == (2 * B * H if faster else 0)


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("padded", [True, False])
def test_dropout_leaves_weights_out_forward_and_backward(padded):
    queries, keys, value, mask = tensors()
    leaves = [x.requires_grad_() for x in (*queries, *keys, value)]
    torch.manual_seed(1)
    out = fused_attention(queries, keys, value, mask if padded else None, 0.3)
    factor = torch.randn(B, N, H, F).transpose(1, 2)
    found = [out, *torch.autograd.grad((out * factor).sum(), leaves)]

    torch.manual_seed(1)
    kept = draw((B, H, N, L)) < round(0.7 * 2**16) - 2**15
    exact = [x.detach().double().requires_grad_() for x in leaves]
    logits = sum(q @ k.transpose(-1, -2) for q, k in zip(exact[:2], exact[2:4], strict=True))
    if padded:
        logits = logits.masked_fill(mask[:, None, None], -torch.inf)
    expected = (logits.softmax(-1) * kept / 0.7) @ exact[4]
    expected = [expected, *torch.autograd.grad((expected * factor).sum(), exact)]
    for ours, twin in zip(found, expected, strict=True):
        # The share that is kept is 0.7 to a part in 2^16.
        assert torch.allclose(ours.double(), twin, rtol=2e-5, atol=2e-5 * twin.abs().max().item())


@pytest.mark.parametrize("scale", [1.0, 500.0])
def test_dropout_written_out_has_the_gradients_of_its_formula(scale):
    """With logits so far apart, too, that weights are 0 of themselves."""
    torch.manual_seed(0)
    rows = [torch.randn(1, 2, size, 3, dtype=torch.float64, requires_grad=True) for size in (3, 4, 4)]

    def mixed(*rows):
        torch.manual_seed(1)
        return written_out.attend_written_out(*rows, None, scale, 0.3)

    assert (scale > 1) == bool(((rows[0] * scale) @ rows[1].mT).softmax(-1).eq(0).any())
    assert torch.autograd.gradcheck(mixed, rows)
    assert torch.autograd.gradgradcheck(mixed, rows)


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("seen", [*SEEN, "numbers that are added"])
def test_dropout_in_attention_of_any_kind(seen):
    torch.manual_seed(0)
    rows = [torch.randn(B, H, size, E) for size in (N, L, L)]
    allowed = torch.randn(N, L) if seen not in SEEN else SEEN[seen]()
    if seen in SEEN and allowed is not None:
        allowed[..., 0] = True  # each sees something
    torch.manual_seed(1)
    found = by_head.attend(*rows, allowed, 0.3)
    torch.manual_seed(1)
    kept = draw((B, H, N, L)) < round(0.7 * 2**16) - 2**15
    query, key, value = (x.double() for x in rows)
    logits = query @ key.mT / E**0.5
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf) if seen in SEEN else logits + allowed
    expected = (logits.softmax(-1) * kept / 0.7) @ value
    assert torch.allclose(found.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("_faster")
def test_numbers_that_are_added_go_by_pytorch():
    rows = [torch.randn(B, H, size, E) for size in (N, L, L)]
    assert counted(lambda: by_head.attend(*rows, torch.zeros(N, L))) == 0


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that an operation gives."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("form", ["fused", "head by head"])
def test_no_tensor_has_a_number_for_each_head_query_and_cell(form, monkeypatch):
    """Under autograd, with all terms of SAP-DETR and padding."""
    batch, heads, queries, shape, width = 2, 8, 100, (10, 12), 64
    # Whoever watches operations gets PyTorch's own, unless told otherwise.
    monkeypatch.setattr(by_head, "gains", lambda *given, **sizes: form == "head by head")
    terms = ["content", "point", "side", "side_directed_gaussian"]
    module = TermAttention(width=width, heads=heads, positions=("point", "side"), dropout=0.0, first=True, terms=terms)
    cells = shape[0] * shape[1]
    mask = torch.zeros(batch, cells, dtype=torch.bool)
    mask[1, 60:] = True
    memory = Memory(torch.randn(batch, cells, width), torch.randn(batch, cells, width), (shape,), mask)
    codes = {"point": torch.randn(batch, queries, width), "side": torch.randn(batch, queries, 2 * width)}
    embeddings = {name: torch.randn(batch, queries, width) for name in ("point", "side")}
    reference = Reference(torch.rand(batch, queries, 2), torch.rand(batch, queries, 4))
    content = torch.randn(batch, queries, width, requires_grad=True)
    with Largest() as seen:
        module(content, QueryPosition(embeddings, codes), reference, memory).square().sum().backward()
    assert batch * queries * 2 * width <= seen.numbers < batch * heads * queries * cells
