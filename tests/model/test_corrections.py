"""Each published defect of SAP-DETR beside its corrected form (fact sheet sap_detr.md, section 13)."""

import pytest
import torch
from torch import nn

import detrkit
from detrkit.layers import masked_group_norm
from detrkit.recipe import list_recipes
from detrkit.sap.geometry import SalientPointGeometry
from detrkit.sap.inner import InnerCost, InnerLoss
from detrkit.sap.queries import MemoryContent, SalientGridQueries
from detrkit.sap.terms import SideDirectedGaussianTerm
from detrkit.structures import Matches, Memory, Output, QueryPosition, Targets

GRID = (3, 4)
F64 = torch.float64


def references(geometry, *, inside):
    """The queries of GRID at the share `inside` [2] of their cells, with sides of 0.2."""
    queries = SalientGridQueries(width=32, geometry=geometry, grid=GRID, content="zero").double()
    memory = Memory(torch.zeros(1, 6, 32, dtype=F64), torch.zeros(1, 6, 32, dtype=F64), ((2, 3),))
    corners = queries(memory).reference.origin
    cell = (1 / GRID[1], 1 / GRID[0])
    points = corners + torch.tensor(inside, dtype=F64) * torch.tensor(cell, dtype=F64)
    return geometry.start(points, torch.full((1, 12, 4), 0.2, dtype=F64), corners, cell)


def zero_offsets():
    return {"box": torch.zeros(1, 12, 4, dtype=F64), "point": torch.zeros(1, 12, 2, dtype=F64)}


@pytest.mark.parametrize("inside", [(0.1, 0.9), (0.5, 0.5), (0.7, 0.02)])
def test_offsets_in_cells_leave_a_point_where_it_is_and_offsets_in_the_image_do_not(inside):
    right = SalientPointGeometry(grid=GRID, offset_unit="cell", head_cell="own")
    reference = references(right, inside=inside)
    torch.testing.assert_close(right.move(zero_offsets(), reference).point, reference.point)
    published = SalientPointGeometry(grid=GRID, head_cell="own")
    moved = published.move(zero_offsets(), reference).point
    distance, before = moved - reference.origin, reference.point - reference.origin
    torch.testing.assert_close(distance, before * torch.tensor([1 / GRID[1], 1 / GRID[0]], dtype=F64))


def test_heads_start_from_the_current_point_or_from_the_one_before():
    current = SalientPointGeometry(grid=GRID, offset_unit="cell", head_cell="own", head_start="current")
    published = SalientPointGeometry(grid=GRID, offset_unit="cell", head_cell="own")
    first = references(current, inside=(0.2, 0.3))
    offsets = zero_offsets() | {"point": torch.full((1, 12, 2), 0.8, dtype=F64)}
    second = current.move(offsets, first)
    assert not torch.allclose(second.point, first.point)
    torch.testing.assert_close(current.decode(zero_offsets(), second).points, second.point)
    torch.testing.assert_close(published.decode(zero_offsets(), second).points, first.point)


@pytest.mark.parametrize(
    ("width", "groups"),
    [(8, 1), (44, 4), (64, 8), (96, 12), (100, 10), (212, 4), (256, 32), (264, 24), (288, 32), (300, 30)],
)
def test_content_is_normed_in_groups_at_any_width(width, groups):
    content = MemoryContent(width, border="zero", extent="padded")
    tokens = torch.randn(1, 6, width)
    found = content(Memory(tokens, tokens, ((2, 3),)), torch.rand(1, 4, 2))
    assert found.shape == (1, 4, width)
    assert [block.num_groups for block in content.blocks if isinstance(block, nn.GroupNorm)] == [groups] * 3


def test_points_that_start_in_the_middle_of_their_cells():
    geometry = SalientPointGeometry(grid=GRID)
    memory = Memory(torch.zeros(2, 6, 32), torch.zeros(2, 6, 32), ((2, 3),))
    make = {s: SalientGridQueries(width=32, geometry=geometry, grid=GRID, start=s) for s in ("corner", "center")}
    corner, center = (queries(memory).reference for queries in make.values())
    torch.testing.assert_close(center.origin, corner.origin)
    half = torch.tensor([0.5 / GRID[1], 0.5 / GRID[0]]).expand_as(corner.point)
    torch.testing.assert_close(center.point - corner.point, half)
    assert not make["corner"].points.requires_grad


def test_content_at_the_border():
    memory = Memory(torch.ones(1, 35, 16), torch.zeros(1, 35, 16), ((5, 7),))
    points = torch.tensor([[[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]]])
    for border, shares in (("zero", [0.25, 0.5, 1.0]), ("edge", [1.0, 1.0, 1.0])):
        content = MemoryContent(16, border=border, extent="padded")
        content.blocks = nn.Identity()
        torch.testing.assert_close(content(memory, points)[0, :, 0], torch.tensor(shares))


def padded(values, shape):
    """A map [1, D, h, w] as memory, and the same at the top left of a map of `shape` with noise in the padding."""
    height, width = values.shape[2:]
    around = torch.randn(1, values.shape[1], *shape, dtype=values.dtype)
    around[:, :, :height, :width] = values
    mask = torch.ones(1, *shape, dtype=torch.bool)
    mask[:, :height, :width] = False
    tokens = [m.flatten(2).transpose(1, 2) for m in (values, around)]
    return (
        Memory(tokens[0], torch.zeros_like(tokens[0]), ((height, width),)),
        Memory(tokens[1], torch.zeros_like(tokens[1]), (shape,), mask.flatten(1)),
    )


@pytest.mark.parametrize("border", ["zero", "edge"])
@pytest.mark.parametrize("extent", ["image", "padded"])
def test_content_depends_on_padding_as_published_only(extent, border):
    torch.manual_seed(0)
    alone, batched = padded(torch.randn(1, 16, 5, 6, dtype=F64), (8, 9))
    content = MemoryContent(16, border=border, extent=extent).double()
    edges = torch.tensor([[[1.0, 1.0], [0.98, 0.5], [0.5, 0.98], [0.0, 1.0]]], dtype=F64)
    points = torch.cat((edges, torch.rand(1, 20, 2, dtype=F64)), dim=1)
    same = torch.allclose(content(alone, points), content(batched, points))
    assert same is (extent == "image")


def test_group_norm_of_the_image_alone():
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    values = torch.randn(1, 16, 6, 7, dtype=F64)
    outside = torch.ones(1, 1, 6, 7, dtype=torch.bool)
    outside[..., :4, :5] = False
    torch.testing.assert_close(masked_group_norm(values, outside, norm)[..., :4, :5], norm(values[..., :4, :5]))


@pytest.mark.parametrize(
    "name", ["dino_4scale_r50_12ep", "sap_detr_r50_50ep", "anchor_detr_r50_50ep", "sap_dino_r50_12ep"]
)
def test_a_single_image_of_one_cell_is_what_it_is_in_a_batch(name):
    """Of 8 channels each is a group of its own."""
    small = ["backbone.name=test_resnet", "backbone.pretrained=false", "detector.width=8", "detector.heads=1"]
    recipe = detrkit.load_recipe(name, [*small, "detector.classes=3", "encoder.layers=1", "decoder.layers=1"])
    detector = detrkit.build_detector(recipe).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=F64)
    torch.testing.assert_close(detector(images[:1]).logits, detector(images).logits[:, :1])


def test_group_norm_in_bfloat16_has_statistics_in_float32():
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16)
    values = (torch.randn(1, 16, 30, 30) + 8).bfloat16()
    outside = torch.ones(1, 1, 30, 30, dtype=torch.bool)
    outside[..., :23, :29] = False
    inside = values[..., :23, :29]
    torch.testing.assert_close(masked_group_norm(values, outside, norm)[..., :23, :29], norm(inside.float()))
    rough = masked_group_norm(values, outside, norm.bfloat16())
    assert rough.dtype == torch.bfloat16  # beside weights of that type, as nn.GroupNorm


@pytest.mark.parametrize("extent", ["image", "padded"])
def test_gaussians_depend_on_padding_as_published_only(extent):
    torch.manual_seed(0)
    term = SideDirectedGaussianTerm(width=32, heads=2, extent=extent).double()
    key = term.make_key(width=32, heads=2)
    reference = references(SalientPointGeometry(grid=GRID), inside=(0.3, 0.3))
    content = torch.randn(1, 12, 32, dtype=F64)
    weights = []
    for memory in padded(torch.randn(1, 32, 5, 6, dtype=F64), (8, 9)):
        logits = term(content, QueryPosition(), reference, memory) @ key(memory).transpose(-1, -2)
        weights.append(logits.unflatten(-1, memory.shape)[..., :5, :6].flatten(-2).softmax(-1))
    assert torch.allclose(*weights) is (extent == "image")


def test_inner_loss_with_and_without_gradient():
    points = torch.tensor([[[[0.1, 0.5], [0.5, 0.5]]]], requires_grad=True)
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]])  # x from 0.3 to 0.7: the first point is 0.2 outside
    output = Output(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 4), points=points)
    targets = Targets(torch.zeros(1, 2, dtype=torch.int64), boxes.expand(1, 2, 4), (2,), 1)
    pairs = torch.tensor([[0, 1]])
    matches = Matches(torch.tensor([0, 0]), pairs, pairs)
    objects = torch.tensor(2.0)
    count = InnerLoss(form="count")(output, targets, matches, objects)
    assert count.tolist() == [0.5]
    assert not count.requires_grad
    distance = InnerLoss(form="distance")(output, targets, matches, objects)
    torch.testing.assert_close(distance, torch.tensor([0.1]))
    distance.sum().backward()
    assert points.grad[0, 0].tolist() == [[-0.5, 0.0], [0.0, 0.0]]  # to the right, into the box


def test_a_point_on_an_edge_is_inside():
    points = torch.tensor([(0.25, 0.5), (0.5, 0.25), (0.75, 0.5), (0.5, 0.75), (0.25, 0.75), (0.24, 0.5), (0.5, 0.76)])
    output = Output(torch.zeros(1, 1, 7, 3), torch.zeros(1, 1, 7, 4), points=points[None, None])
    targets = Targets(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1, 4), 0.5), (1,), 1)  # 0.25 to 0.75
    assert InnerCost()(output, targets).flatten().tolist() == [0, 0, 0, 0, 0, 1, 1]
    query = torch.arange(7)
    matches = Matches(torch.zeros_like(query), query[None], torch.zeros(1, 7, dtype=torch.int64))
    assert InnerLoss()(output, targets, matches, torch.tensor(1.0)).tolist() == [2]


def values_of(name):
    recipe = detrkit.load_recipe(name).full_values()
    return {key: recipe[key] for key in recipe if key not in ("title", "description", "reproduces")}


@pytest.mark.parametrize("name", [e.name for e in list_recipes() if e.name.startswith("ablations/corrections/")])
def test_every_correction_changes_something(name):
    assert values_of(name) != values_of("sap_detr_r50_3layer_400q_12ep")
