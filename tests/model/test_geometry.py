"""Geometries: references, decoding, movement."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit.boxes import center_to_corners
from detrkit.errors import UserError
from detrkit.geometry.box import BoxGeometry
from detrkit.geometry.none import NoGeometry
from detrkit.geometry.point import PointGeometry
from detrkit.sap.geometry import SalientPointGeometry
from detrkit.structures import Reference
from tests.model.test_detector import small

unit = st.floats(0.02, 0.98)
raw = st.floats(-8, 8)
boxes = st.tuples(unit, unit, unit, unit).map(lambda row: torch.tensor([[row]], dtype=torch.float64))


def grid_reference(geometry, rows=4, columns=5, dtype=torch.float64):
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    points = torch.stack((x, y), -1).flatten(0, 1)[None].to(dtype)
    return geometry.start(points, torch.full((1, rows * columns, 4), 0.2, dtype=dtype), points, (1 / columns, 1 / rows))


@given(boxes)
def test_encoded_boxes_keep_their_corners(box):
    for geometry in (BoxGeometry(), SalientPointGeometry(grid=(17, 18))):
        reference = geometry.encode(box)
        assert torch.allclose(reference.corners("test"), center_to_corners(box), atol=1e-12)
        assert torch.allclose(reference.size("test"), box[..., 2:], atol=1e-12)


@given(boxes)
def test_offsets_of_zero_leave_a_box_where_it_is(box):
    geometry = BoxGeometry()
    decoded = geometry.decode({"box": torch.zeros(1, 1, 4, dtype=torch.float64)}, geometry.encode(box))
    assert torch.allclose(decoded.boxes, box, atol=1e-12)
    assert decoded.points is None


@given(boxes)
def test_an_encoded_salient_point_lies_in_its_cell(box):
    reference = SalientPointGeometry(grid=(17, 18)).encode(box)
    inside = (reference.point - reference.origin) / reference.cell
    assert ((inside >= -1e-9) & (inside <= 1 + 1e-9)).all()


@settings(max_examples=30)
@given(st.lists(raw, min_size=6, max_size=6), st.integers(1, 6))
def test_a_bounded_point_stays_in_its_cell_however_often_it_moves(numbers, layers):
    geometry = SalientPointGeometry(grid=(4, 5), head_cell="own")
    reference = grid_reference(geometry)
    offsets = {
        "box": torch.tensor(numbers[:4]).double().expand(1, 20, 4),
        "point": torch.tensor(numbers[4:]).double().expand(1, 20, 2),
    }
    for _ in range(layers):
        decoded = geometry.decode(offsets, reference)
        reference = geometry.move(offsets, reference)
        for point in (decoded.points, reference.point):
            inside = (point - reference.origin) / reference.cell
            assert ((inside >= 0) & (inside <= 1)).all()
        corners = center_to_corners(decoded.boxes)
        assert ((decoded.points >= corners[..., :2]) & (decoded.points <= corners[..., 2:])).all()


def test_a_fixed_point_has_no_point_head_and_does_not_move():
    geometry = SalientPointGeometry(grid=(4, 5), movement="fixed")
    assert geometry.offset_widths == {"box": 4}
    reference = grid_reference(geometry)
    moved = geometry.move({"box": torch.ones(1, 20, 4).double()}, reference)
    assert torch.equal(moved.point, reference.point)
    assert (moved.sides > reference.sides).all()


def test_a_free_point_leaves_its_cell():
    geometry = SalientPointGeometry(grid=(4, 5), movement="free")
    offsets = {"box": torch.zeros(1, 20, 4).double(), "point": torch.full((1, 20, 2), 3.0).double()}
    moved = geometry.move(offsets, grid_reference(geometry))
    assert (moved.point - moved.origin > moved.cell).any()


def test_published_heads_start_from_the_point_of_the_layer_before():
    geometry = SalientPointGeometry(grid=(17, 18))
    reference = grid_reference(geometry, 17, 18)
    offsets = {"box": torch.zeros(1, 306, 4).double(), "point": torch.full((1, 306, 2), 9.0).double()}
    moved = geometry.move(offsets, reference)
    still = {"box": offsets["box"], "point": torch.zeros(1, 306, 2).double()}
    assert torch.equal(geometry.decode(still, moved).points, geometry.decode(still, reference).points)


@pytest.mark.parametrize(("grid", "cell"), [((17, 18), 1 / 18), ((20, 20), 1 / 20), ((10, 10), 1 / 20)])
def test_published_cell_of_the_heads(grid, cell):
    geometry = SalientPointGeometry(grid=grid)
    reference = grid_reference(geometry, *grid)
    far = {"box": torch.zeros(1, 1, 4).double(), "point": torch.full((1, 1, 2), 50.0).double()}
    travelled = geometry.decode(far, reference).points - reference.origin
    assert travelled[0, 0, 0].item() == pytest.approx(cell)


@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "dab_detr_r50_50ep"])
def test_boxes_start_small_around_where_they_were(name):
    detector, _ = small(name, "head.size_start=-2")
    geometry, head = detector.decoder.geometry, detector.decoder.head
    reference = geometry.encode(torch.tensor([[[0.4, 0.6, 0.5, 0.5]]]))
    before = geometry.decode({key: torch.zeros(1, 1, n) for key, n in geometry.offset_widths.items()}, reference)
    boxes = geometry.decode(head.offsets(0, torch.randn(1, 1, 64)), reference).boxes
    assert torch.allclose(boxes[..., :2], before.boxes[..., :2], atol=1e-6)
    assert (boxes[..., 2:] < 0.3 * before.boxes[..., 2:]).all()


def test_the_encoder_s_boxes_keep_the_sizes_of_their_cells():
    """`size_start` is for boxes that have no size to start from; a proposal has its cell's."""
    overrides = ["queries.type=mixed_selection", "decoder.positions=['point']", "geometry.refined=true"]
    detector, _ = small("deformable_detr_r50_50ep", *overrides, "head.size_start=-2")
    content = torch.randn(1, 3, 64)
    assert not detector.queries.proposals.head.offsets(0, content)["box"].any()
    assert torch.equal(detector.decoder.head.offsets(0, content)["box"][0, 0], torch.tensor([0.0, 0.0, -2.0, -2.0]))


def test_a_point_without_sides_says_who_needs_them():
    with pytest.raises(UserError, match="the side term needs references with sides"):
        Reference(torch.zeros(1, 1, 2)).corners("the side term")


def test_detach_cuts_every_tensor():
    geometry = SalientPointGeometry(grid=(4, 5))
    reference = grid_reference(geometry)
    offsets = {
        "box": torch.zeros(1, 20, 4).double().requires_grad_(),
        "point": torch.zeros(1, 20, 2).double().requires_grad_(),
    }
    moved = geometry.move(offsets, reference)
    assert moved.sides.requires_grad
    assert moved.point.requires_grad
    detached = moved.detach()
    assert type(detached) is type(moved)
    assert not any(t.requires_grad for t in vars(detached).values())


def logit(x, eps):
    """ln(x / (1 - x)), neither below eps."""
    return math.log(max(min(x, 1), eps) / max(1 - min(max(x, 0), 1), eps))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_without_a_geometry_every_point_is_the_middle_and_a_box_is_what_is_predicted():
    geometry, boxes = NoGeometry(), torch.rand(2, 3, 4)
    assert geometry.offset_widths == {"box": 4}
    start = geometry.start(torch.rand(2, 3, 2), torch.rand(2, 3, 4), torch.rand(2, 3, 2), (0.1, 0.1))
    for reference in (geometry.encode(boxes), start):
        assert reference.point.tolist() == [[[0.5, 0.5]] * 3] * 2
        assert reference.sides is None
        raw = torch.randn(2, 3, 4)
        torch.testing.assert_close(geometry.decode({"box": raw}, reference).boxes, 1 / (1 + torch.exp(-raw)))


def test_boxes_told_from_a_point_and_refined():
    offsets = [0.3, -0.4, 0.5, -0.6]
    raw = {"box": torch.tensor([[offsets]], dtype=torch.float64)}
    box = [0.3, 0.6, 0.2, 0.35]
    given_box = torch.tensor([[box]], dtype=torch.float64)
    for geometry in (PointGeometry(eps=1e-2), PointGeometry(refined=True, eps=1e-2)):
        for reference in (geometry.encode(given_box), geometry.start(given_box[..., :2], given_box, None, None)):
            assert reference.point.tolist() == [[box[:2]]]
            assert reference.sides is None
            found = geometry.decode(raw, reference).boxes[0, 0].tolist()
            first = [sigmoid(logit(b, 1e-2) + o) for b, o in zip(box[:2], offsets[:2], strict=True)]
            assert found == pytest.approx([*first, sigmoid(offsets[2]), sigmoid(offsets[3])])
            moved = geometry.move(raw, reference)
            assert moved.boxes()[0, 0].tolist() == pytest.approx(found)
            expected = [sigmoid(logit(b, 1e-2) + o) for b, o in zip(found, offsets, strict=True)]
            assert geometry.decode(raw, moved).boxes[0, 0].tolist() == pytest.approx(expected)


def test_a_box_starts_from_the_sides_around_a_point():
    points, sides = torch.tensor([[[0.4, 0.5]]]), torch.tensor([[[0.1, 0.2, 0.3, 0.1]]])
    reference = BoxGeometry().start(points, sides, points, (0.1, 0.1))
    assert reference.boxes()[0, 0].tolist() == pytest.approx([0.5, 0.45, 0.4, 0.3])
    assert reference.sides[0, 0].tolist() == pytest.approx([0.2, 0.15, 0.2, 0.15])


@pytest.mark.parametrize("head_start", ["previous", "current"])
@pytest.mark.parametrize("head_cell", ["own", "published"])
@pytest.mark.parametrize("offset_unit", ["image", "cell"])
@pytest.mark.parametrize("movement", ["bounded", "free", "fixed"])
def test_a_salient_point_and_its_sides_number_by_number(movement, offset_unit, head_cell, head_start):
    options = {"movement": movement, "offset_unit": offset_unit, "head_cell": head_cell, "head_start": head_start}
    geometry = SalientPointGeometry(grid=(4, 5), eps=1e-2, **options)
    cell, origin, sides = (0.2, 0.25), (0.4, 0.5), (0.1, 0.3, 0.2, 0.05)
    points = {"previous": (0.42, 0.7), "current": (0.55, 0.6)}
    offsets = {"box": (0.5, -0.5, 1.5, -1.0), "point": (0.7, -0.9)}
    corner, *given_points = (torch.tensor([[v]], dtype=torch.float64) for v in (origin, *points.values()))
    reference = geometry.start(given_points[0], torch.tensor([[sides]], dtype=torch.float64), corner, cell)
    assert reference.cells()[0, 0].tolist() == pytest.approx([0.4, 0.5, 0.6, 0.75])
    reference = type(reference)(**{**vars(reference), "point": given_points[1]})
    raw = {name: torch.tensor([[v]], dtype=torch.float64) for name, v in offsets.items()}

    def moved(start, axis, cell):
        if movement == "fixed":
            return start
        if movement == "free":
            return sigmoid(logit(start, 1e-2) + offsets["point"][axis])
        distance = (start - origin[axis]) / (cell if offset_unit == "cell" else 1)
        return origin[axis] + cell * sigmoid(logit(distance, 1e-2) + offsets["point"][axis])

    left, top, right, bottom = (sigmoid(logit(s, 1e-2) + o) for s, o in zip(sides, offsets["box"], strict=True))
    head_cells = cell if head_cell == "own" else (1 / 20, 1 / 20)
    x, y = (moved(points[head_start][axis], axis, head_cells[axis]) for axis in (0, 1))
    found = geometry.decode(raw, reference)
    assert found.points[0, 0].tolist() == pytest.approx([x, y])
    corners = center_to_corners(found.boxes)[0, 0].tolist()
    assert corners == pytest.approx([x - left, y - top, x + right, y + bottom])
    after = geometry.move(raw, reference)
    assert after.point[0, 0].tolist() == pytest.approx([moved(points["current"][a], a, cell[a]) for a in (0, 1)])
    assert after.sides[0, 0].tolist() == pytest.approx([left, top, right, bottom])
    assert torch.equal(after.previous, given_points[1])
    assert torch.equal(after.cells(), reference.cells())


def test_the_grid_is_the_queries_or_ones_own():
    geometry = SalientPointGeometry()
    assert geometry.grid == (17, 18)
    assert geometry.head_cell is None
    geometry.on_grid([4, 5])
    assert geometry.grid == (4, 5)
    assert geometry.head_cell == 1 / 20
    own = SalientPointGeometry(grid=(4, 5))
    own.on_grid((4, 5))
    with pytest.raises(UserError, match=r"geometry\.grid = \[4, 5\], but the queries stand on a grid of \[5, 4\]"):
        own.on_grid((5, 4))
    with pytest.raises(TypeError, match="not a Reference"):
        own.move({}, Reference(torch.zeros(1, 1, 2)))


def test_an_encoded_point_at_the_far_edge_is_in_the_last_cell():
    reference = SalientPointGeometry(grid=(4, 5)).encode(torch.tensor([[[1.0, 1.0, 0.5, 0.5], [-0.1, 0.3, 0.1, 0.1]]]))
    torch.testing.assert_close(reference.cells()[0], torch.tensor([[0.8, 0.75, 1.0, 1.0], [0.0, 0.25, 0.2, 0.5]]))
