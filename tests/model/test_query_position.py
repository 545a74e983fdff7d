"""What a decoder layer knows of its queries' places, against sine codes written out number by number."""

import math

import pytest
import torch

from detrkit.attention.query_position import (
    BoxPosition,
    EnteringContent,
    LearnedPosition,
    PointPosition,
    QueryPositions,
)
from detrkit.attention.raw_box import RawBoxPosition
from detrkit.errors import UserError
from detrkit.sap.terms import SidePosition
from detrkit.structures import Memory, Queries, Reference

WIDTH, SHAPE = 8, (4, 6)


@pytest.fixture
def queries():
    torch.manual_seed(0)
    point, sides = torch.rand(2, 3, 2).double(), torch.rand(2, 3, 4).double() / 2
    return Queries(torch.randn(2, 3, WIDTH).double(), Reference(point.requires_grad_(), sides))


@pytest.fixture
def memory():
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 3:] = True, True
    tokens = torch.zeros(2, 24, WIDTH).double()
    return Memory(tokens, tokens, (SHAPE,), mask.flatten(1))


def code(numbers, channels, temperature):
    """Sines and cosines in turn of each number of rows [2, 3, C], every one of `channels` channels."""
    coded = [
        [
            [
                trig(2 * math.pi * u / temperature ** (2 * k / channels))
                for u in row
                for k in range(channels // 2)
                for trig in (math.sin, math.cos)
            ]
            for row in image
        ]
        for image in numbers.tolist()
    ]
    return torch.tensor(coded, dtype=torch.float64)


def two_layers(mlp, x):
    first, second = mlp.layers
    return second(first(x).relu())


def box(queries):
    """(cx, cy, w, h) of each query."""
    left, top, right, bottom = queries.reference.sides.unbind(-1)
    x, y = queries.reference.point.unbind(-1)
    return torch.stack((x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom), dim=-1)


@pytest.mark.parametrize("order", ["xy", "yx"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_point_s_code(queries, order, scaled):
    part = PointPosition(width=WIDTH, temperature=7.0, order=order).double()
    scale = torch.randn(2, 3, WIDTH).double() if scaled else None
    found = part(queries, scale, None)
    point = queries.reference.point
    expected = code(point if order == "xy" else point.flip(-1), WIDTH // 2, 7.0)
    torch.testing.assert_close(found.codes["point"], expected * scale if scaled else expected)
    torch.testing.assert_close(found.embeddings["point"], two_layers(part.embed, expected))  # not scaled
    assert not torch.allclose(found.embeddings["point"], expected)
    found.codes["point"].sum().backward()
    assert point.grad.any()


def test_a_code_as_embedding_sends_no_gradient_and_none_is_none(queries):
    part = PointPosition(width=WIDTH, temperature=7.0, embedding="code")
    found = part(queries, None, None)
    torch.testing.assert_close(found.embeddings["point"], code(queries.reference.point, WIDTH // 2, 7.0))
    assert not found.embeddings["point"].requires_grad
    assert not found.codes["point"].requires_grad
    bare = PointPosition(width=WIDTH, temperature=7.0, embedding="none")(queries, None, None)
    assert bare.embeddings == {}
    assert bare.codes["point"].requires_grad


@pytest.mark.parametrize("frame", ["image", "padded_map"])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_box_s_code(queries, memory, frame, modulated, scaled):
    part = BoxPosition(width=WIDTH, temperature=7.0, modulated=modulated, frame=frame).double()
    scale = torch.randn(2, 3, WIDTH).double() if scaled else None
    found = part(queries, scale, memory)
    share = torch.tensor([[[1.0, 1.0]], [[3 / 6, 3 / 4]]], dtype=torch.float64)  # (w, h) of the map that is image
    if frame == "image":
        share = torch.ones(2, 1, 2, dtype=torch.float64)
    (x, y), (w, h) = ((v * share).unbind(-1) for v in (queries.reference.point, box(queries)[..., 2:]))
    whole = code(torch.stack((y, x, w, h), dim=-1), WIDTH // 2, 7.0)
    torch.testing.assert_close(found.embeddings["box"], two_layers(part.embed, whole))
    expected = whole[..., :WIDTH]
    if scaled:
        expected = expected * scale
    if modulated:
        width, height = two_layers(part.size, queries.content).sigmoid().unbind(-1)
        half = WIDTH // 2
        ratios = (height / h)[..., None].expand(-1, -1, half), (width / w)[..., None].expand(-1, -1, half)
        expected = expected * torch.cat(ratios, dim=-1)
    torch.testing.assert_close(found.codes["point"], expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_sides_code(queries, scaled):
    part = SidePosition(width=WIDTH, temperature=7.0).double()
    scale = torch.randn(2, 3, WIDTH).double() if scaled else None
    found = part(queries, scale, None)
    x, y, w, h = box(queries).unbind(-1)
    expected = code(torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1), WIDTH // 2, 7.0)
    torch.testing.assert_close(found.embeddings["side"], two_layers(part.embed, expected))
    if scaled:
        expected = torch.cat((expected[..., :WIDTH] * scale, expected[..., WIDTH:] * scale), dim=-1)
    torch.testing.assert_close(found.codes["side"], expected)
    assert SidePosition(width=WIDTH, embedding="none")(queries, None, None).embeddings == {}


def test_a_raw_box_is_its_four_numbers(queries):
    part = RawBoxPosition(width=WIDTH).double()
    found = part(queries, None, None)
    torch.testing.assert_close(found.embeddings["raw_box"], two_layers(part.embed, box(queries)))
    assert found.codes == {}


def test_embeddings_that_queries_bring_and_content_as_it_enters(queries):
    with pytest.raises(UserError, match=r'decoder\.positions has "learned", but these queries bring no embedding'):
        LearnedPosition()(queries, None, None)
    brought, read = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    for read_from in (None, read):
        bringing = Queries(queries.content, queries.reference, embedding=brought, read_from=read_from)
        found = LearnedPosition()(bringing, None, None)
        assert found.embeddings == {"learned": brought}
        assert found.codes == ({} if read_from is None else {"read_from": read})
    found = EnteringContent()(queries, None, None)
    assert (found.embeddings, found.codes) == ({}, {"entering": queries.content})


def test_several_sources_are_one(queries, memory):
    places = QueryPositions(["point", "side", "entering", "relation"], width=WIDTH, heads=2).double()
    assert places.embedding_names == ("point", "side")
    assert places.relation_names == ("relation",)
    assert places.reads_boxes
    found = places(queries, None, memory)
    assert (set(found.embeddings), set(found.codes)) == ({"point", "side"}, {"point", "side", "entering"})
    assert found.relations == {"relation": None}  # of the first layer, before which there is no box
    assert not QueryPositions(["point"], width=WIDTH, heads=2).reads_boxes
