"""Box forms and overlaps, against shapely-free arithmetic done by hand and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou

from detrkit.boxes import center_to_corners, corners_to_center, inverse_sigmoid, overlaps

coordinate = st.floats(0, 1, allow_nan=False, width=32)
size = st.floats(2**-10, 1, width=32)
boxes = st.lists(st.tuples(coordinate, coordinate, size, size), min_size=1, max_size=5).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@given(boxes)
def test_forms_are_inverse(center):
    assert torch.allclose(corners_to_center(center_to_corners(center)), center, atol=1e-12)


@given(boxes, boxes)
def test_giou_is_torchvisions(a, b):
    a, b = center_to_corners(a), center_to_corners(b)
    assert torch.allclose(overlaps(a[:, None], b[None])[1], generalized_box_iou(a, b), atol=1e-9)


@given(boxes, boxes)
def test_overlap_ranges_and_symmetry(a, b):
    a, b = center_to_corners(a)[:, None], center_to_corners(b)[None]
    iou, giou = overlaps(a, b)
    assert ((iou >= 0) & (iou <= 1 + 1e-12)).all()
    assert ((giou > -1) & (giou <= iou + 1e-12)).all()
    assert torch.allclose(giou, overlaps(b.transpose(0, 1), a.transpose(0, 1))[1].T, atol=1e-12)


@given(boxes)
def test_a_box_overlaps_itself_wholly(a):
    iou, giou = overlaps(center_to_corners(a), center_to_corners(a))
    assert torch.allclose(iou, torch.ones_like(iou))
    assert torch.allclose(giou, torch.ones_like(giou))


def test_overlap_by_hand():
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 4.0])
    iou, giou = overlaps(a, b)  # intersection 1, union 9, enclosing 12
    assert iou.item() == pytest.approx(1 / 9)
    assert giou.item() == pytest.approx(1 / 9 - 3 / 12)
    iou, giou = overlaps(a, b, eps=0.5)
    assert iou.item() == pytest.approx(1 / 9.5)
    assert giou.item() == pytest.approx(1 / 9.5 - 3 / 12.5)
    apart, _ = overlaps(a, b + 10)  # both ways: two negative lengths are no area
    assert apart.item() == 0


@given(st.floats(0, 1))
def test_inverse_sigmoid_undoes_sigmoid_inside_the_clip(x):
    back = torch.sigmoid(inverse_sigmoid(torch.tensor(x, dtype=torch.float64), 1e-3)).item()
    if 1e-3 <= x <= 1 - 1e-3:
        assert math.isclose(back, x, abs_tol=1e-12)
    else:  # ln(eps / (1 - x)): the other side is not clipped along
        assert back == pytest.approx(x, abs=1.1e-3)


def test_inverse_sigmoid_of_nothing():
    zero = torch.tensor(0.0, requires_grad=True)
    value = inverse_sigmoid(zero, 1e-3)
    assert value.item() == pytest.approx(-6.9078, abs=1e-4)  # fact sheet sap_detr.md, section 1


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_inverse_sigmoid_is_to_the_bit_what_two_clamps_in_a_row_are(eps):
    """As the official codes write it; an export needs it otherwise."""
    x = torch.cat((torch.linspace(-0.5, 1.5, 4001), torch.tensor([0.0, 1.0, eps, 1 - eps, -1e-9, 1e-9, 1 + 1e-7])))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = inverse_sigmoid(mine, eps)
    clipped = theirs.clamp(min=0, max=1)
    official = torch.log(clipped.clamp(min=eps) / (1 - clipped).clamp(min=eps))
    assert torch.equal(value, official)
    (value.sum() + (mine * mine).sum()).backward()
    (official.sum() + (theirs * theirs).sum()).backward()
    assert torch.equal(mine.grad, theirs.grad)
