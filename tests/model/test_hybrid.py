"""RT-DETR's hybrid encoder: any size, padding, norms folded; its numbers are held in tests/zoo/test_rt_detr.py."""

import pytest
import torch

from detrkit.encoders.fusion import ConvNorm, RepBlock
from detrkit.encoders.hybrid import HybridEncoder
from detrkit.errors import UserError
from detrkit.one_pass import OnePassConv2d
from detrkit.position import CountedPosition
from detrkit.structures import FeatureMap

WIDTH = 16


def encoder(levels=3, **options):
    torch.manual_seed(0)
    position = CountedPosition(width=WIDTH)
    made = HybridEncoder(
        channels=(4, 6, 8)[-levels:], width=WIDTH, heads=2, position=position, feedforward=24, **options
    )
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5), torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2), module.running_var.uniform_(0.5, 1.5)
    return made.double().eval()


def features(*sizes, masks=None):
    torch.manual_seed(1)
    return [
        FeatureMap(torch.randn(2, c, *size, dtype=torch.float64), mask)
        for c, size, mask in zip((4, 6, 8)[-len(sizes) :], sizes, masks or [None] * 3, strict=False)
    ]


def test_counted_codes_are_sines_of_rows_and_columns():
    code = CountedPosition(width=8, temperature=100.0)(torch.zeros(2, 1, 3, 5, dtype=torch.float64), None)
    assert code.shape == (2, 15, 8)
    for row in range(3):
        for column in range(5):
            y, x = [torch.tensor([i, i / 10.0]).double() for i in (row, column)]
            expected = torch.cat((y.sin(), y.cos(), x.sin(), x.cos()))
            assert torch.allclose(code[1, row * 5 + column], expected)


@pytest.mark.parametrize(
    "sizes", [((20, 28), (10, 14), (5, 7)), ((19, 27), (10, 14), (5, 7)), ((5, 3), (3, 2), (2, 1))]
)
def test_levels_of_even_and_odd_sizes_keep_them(sizes):
    memory = encoder()(features(*sizes))
    assert memory.shapes == sizes
    assert memory.tokens.shape == memory.position.shape == (2, sum(h * w for h, w in sizes), WIDTH)


def test_a_fine_cell_takes_the_coarse_cell_above_it_whether_sizes_are_even_or_odd():
    """Cell i of a level lies in cell i // 2 of the next."""
    for size in (7, 8):
        coarse = torch.arange((size + 1) // 2, dtype=torch.float32)[None, None]
        raised = torch.nn.functional.interpolate(coarse, size=size, mode="nearest")[0, 0]
        assert raised.tolist() == [i // 2 for i in range(size)]


@pytest.mark.parametrize("expansion", [1.0, 0.5])
def test_folded_norms_change_nothing(expansion):
    made, maps = encoder(expansion=expansion), features((9, 12), (5, 6), (3, 3))
    expected = made(maps).tokens
    before = [type(module) for module in made.modules()]
    made.prepare_for_detection()
    made.prepare_for_detection()  # again
    after = [type(module) for module in made.modules()]
    assert torch.nn.BatchNorm2d not in {base for kind in after for base in kind.__mro__}
    assert after.count(OnePassConv2d) == before.count(torch.nn.Conv2d) - before.count(RepBlock)
    assert torch.allclose(made(maps).tokens, expected, atol=1e-12)
    assert expected.std() > 0.1


@torch.no_grad()
def test_convolutions_in_one_pass_change_nothing():
    made, maps = encoder(), features((9, 12), (5, 6), (3, 3))
    expected = made(maps).tokens
    made.float().prepare_for_detection()
    # All SiLUs are in convolutions but those after the sums in fusions.
    assert sum(isinstance(module, torch.nn.SiLU) for module in made.modules()) == 0
    found = made([FeatureMap(m.values.float(), m.mask) for m in maps]).tokens
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_no_cell_looks_at_a_padded_one():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[:, 2], mask[:, :, 3] = True, True
    made = encoder(levels=1)
    (level,) = features((3, 4), masks=[mask])
    changed = FeatureMap(level.values.masked_fill(mask[:, None], 7.0), mask)
    one, other = made([level]), made([changed])
    inside = ~mask.flatten(1)
    assert torch.equal(one.tokens[inside], other.tokens[inside])
    assert not torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.mask, ~inside)
    unmasked = made([FeatureMap(changed.values, None)])
    assert not torch.allclose(unmasked.tokens[inside], one.tokens[inside])


def test_fusions_have_a_channel():
    encoder(expansion=1 / WIDTH)(features((8, 12), (4, 6), (2, 3)))
    with pytest.raises(UserError, match=r"encoder\.expansion = 0\.05 of detector\.width = 16 leaves fusions without"):
        encoder(expansion=0.05)


def test_levels_of_one_size_are_refused():
    with pytest.raises(UserError, match=r"a map of 4 x 6 cells is followed by one of 4 x 6; set backbone\.dilated"):
        encoder()(features((8, 12), (4, 6), (4, 6)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("images", [1, 2])
def test_a_norm_s_gradient_is_that_of_its_formula_when_its_map_becomes_tokens(images, training):
    """PyTorch's own is another for one image."""
    torch.manual_seed(0)
    layer = ConvNorm(3, 8, 1, activated=False).double().train(training)
    maps, factors = torch.randn(images, 3, 3, 4, dtype=torch.float64), torch.randn(images, 12, 8, dtype=torch.float64)
    (layer(maps).flatten(2).transpose(1, 2) * factors).sum().backward()
    torch.testing.assert_close(layer.norm.bias.grad, factors.sum((0, 1)))
    found = layer.conv(maps)
    mean, variance = (x[:, None, None] for x in (layer.norm.running_mean, layer.norm.running_var))
    if training:
        mean, variance = found.mean((0, 2, 3), keepdim=True), found.var((0, 2, 3), correction=0, keepdim=True)
    normed = (found - mean) / (variance + layer.norm.eps).sqrt()
    scale = (normed.flatten(2).transpose(1, 2) * factors).sum((0, 1))
    torch.testing.assert_close(layer.norm.weight.grad, scale.detach())
