"""The noise of denoising blocks, and the points that salient geometry gives it."""

import pytest
import torch

from detrkit.blocks.base import TrainingBlocks
from detrkit.blocks.denoising import ContrastiveDenoising, Denoising, Noise
from detrkit.boxes import center_to_corners
from detrkit.geometry.box import BoxGeometry
from detrkit.sap.geometry import SalientPointGeometry
from detrkit.sap.inner import inner_distance
from detrkit.structures import QueryLayout
from tests.model.test_blocks import batch, noise
from tests.parity import GOLDEN, golden, stored_draws


def clipped(x):
    return min(max(x, 1e-3), 1.0) / (min(max(x, 1e-3), 1.0) + max(1 - x, 1e-3))


def test_denoising_slots_against_a_loop():
    block = Denoising(width=8, classes=5, geometry=BoxGeometry(), groups=3, noise=Noise(label=0.4, box=0.6)).double()
    _, targets = batch(3, 0, 2)
    draws = noise(15, 0.4)
    block.draw = lambda entries: draws
    slots = block.slots(targets, torch.float64)
    content = torch.zeros(3, 9, 8, dtype=torch.float64)
    boxes = torch.full((3, 9, 4), 0.5, dtype=torch.float64)
    entry, new = 0, iter(draws.labels.tolist())
    for group in range(3):
        for image, target in enumerate(targets):
            for j in range(len(target["labels"])):
                label = next(new) if draws.flip[entry] < 0.4 else int(target["labels"][j])
                x, y, w, h = target["boxes"][j].tolist()
                u = [2 * v - 1 for v in draws.boxes[entry].tolist()]
                noised = (x + 0.6 * u[0] * w / 2, y + 0.6 * u[1] * h / 2, w + 0.6 * u[2] * w, h + 0.6 * u[3] * h)
                content[image, group * 3 + j] = block.labels[label]
                boxes[image, group * 3 + j] = torch.tensor([clipped(min(max(v, 0), 1)) for v in noised])
                entry += 1
    assert slots.sizes == (3, 3, 3)
    assert torch.equal(slots.filled, content.any(-1))
    torch.testing.assert_close(block.labels[slots.labels][slots.filled], content[slots.filled])
    torch.testing.assert_close(slots.reference.corners("test"), center_to_corners(boxes), atol=1e-6, rtol=0)


def test_contrastive_slots_against_a_loop():
    geometry = BoxGeometry()
    block = ContrastiveDenoising(
        width=8, classes=5, geometry=geometry, count=6, noise=Noise(label=0.5, box=0.8)
    ).double()
    _, targets = batch(1, 3)
    draws = noise(2 * 2 * 4, 0.5, signs=True)
    block.draw = lambda entries: draws
    slots = block.slots(targets, torch.float64)
    boxes = torch.full((2, 12, 4), 0.5, dtype=torch.float64)
    entry = 0
    for copy in range(4):
        for image, target in enumerate(targets):
            for j, (x, y, w, h) in enumerate(target["boxes"].tolist()):
                corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                for side in range(4):
                    share = draws.boxes[entry, side].item() + (copy % 2)
                    sign = 2 * draws.signs[entry, side].item() - 1
                    corners[side] += sign * share * 0.8 * (w, h)[side % 2] / 2
                x0, y0, x1, y1 = (min(max(v, 0), 1) for v in corners)
                center = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
                boxes[image, copy * 3 + j] = torch.tensor([clipped(max(v, 0)) for v in center])
                entry += 1
    assert slots.sizes == (6, 6)
    torch.testing.assert_close(slots.reference.corners("test"), center_to_corners(boxes), atol=1e-6, rtol=0)
    pairs = sorted(zip(slots.image.tolist(), slots.slot.tolist(), slots.target.tolist(), strict=True))
    assert pairs == [(0, 0, 0), (0, 6, 0), *((1, 6 * g + j, j) for g in range(2) for j in range(3))]


@pytest.mark.parametrize("name", ["dino_r50_single_scale", "dino_r50_single_scale_one_stage"])
def test_contrastive_queries_are_the_official_ones(name):
    case = golden.load(GOLDEN / name)
    settings, expected = case.meta["settings"], case.meta["denoising"]
    share = settings["dn_label_noise_ratio"] / 2
    block = ContrastiveDenoising(
        width=8,
        classes=91,
        geometry=BoxGeometry(),
        count=settings["dn_number"],
        noise=Noise(label=share, box=settings["dn_box_noise_scale"]),
    )
    block.draw = lambda entries: stored_draws(case.tensors)
    slots = block.slots(case.targets(), torch.float32)
    assert slots.sizes == (expected["slots_per_group"],) * expected["groups"]
    stored = case.tensors["input/dn/query_boxes"][:, : sum(slots.sizes)].sigmoid()
    torch.testing.assert_close(slots.reference.corners("test"), center_to_corners(stored), atol=1e-6, rtol=0)
    at = case.tensors["input/dn/batch_index"], case.tensors["input/dn/slot_index"]
    assert torch.equal(slots.labels[at], case.tensors["input/dn/labels"])
    mask = ~case.tensors["input/dn/attn_mask"]
    owner = TrainingBlocks({"denoising": block}).prepare(case.targets()).owner
    assert torch.equal(QueryLayout(len(mask) - sum(slots.sizes), slots=owner).visible, mask)


def test_random_numbers_come_in_the_official_order():
    block = ContrastiveDenoising(width=8, classes=91, geometry=BoxGeometry())
    torch.manual_seed(5)
    draws = block.draw(40)
    torch.manual_seed(5)
    flip = torch.rand(40)
    assert torch.equal(draws.flip, flip)
    assert torch.equal(draws.labels, torch.randint(0, 91, (int((flip < 0.25).sum()),)))
    assert torch.equal(draws.signs, torch.randint(0, 2, (40, 4)))
    assert torch.equal(draws.boxes, torch.rand(40, 4))


@pytest.mark.parametrize(("most", "groups"), [(1, 100), (7, 14), (100, 1), (260, 1)])
def test_as_many_contrastive_groups_as_fit(most, groups):
    block = ContrastiveDenoising(width=8, classes=5, geometry=BoxGeometry(), count=100)
    _, targets = batch(most)
    assert block.slots(targets, torch.float64).sizes == (2 * most,) * groups


# Salient points


@pytest.mark.parametrize("box", [0.4, 1.0])
@pytest.mark.parametrize("kind", [Denoising, ContrastiveDenoising])
def test_noised_salient_points_keep_the_inner_rule(kind, box):
    geometry = SalientPointGeometry(grid=(7, 9))
    torch.manual_seed(2)
    size = torch.rand(400, 2) ** 2 * 0.98 + 0.005
    center = size / 2 + torch.rand(400, 2) * (1 - size)
    objects = torch.cat((center, size), -1).double()
    block = kind(width=8, classes=5, geometry=geometry, noise=Noise(label=0.2, box=box))
    positive = torch.arange(400) % 2 < 1 if kind is ContrastiveDenoising else torch.ones(400, dtype=torch.bool)
    draws = block.draw(400)
    noised = block.noised(objects, positive, draws)
    noised = torch.cat((noised[:, :2], noised[:, 2:].clamp(min=1e-3)), -1)
    reference = geometry.encode_noised(noised[None], objects[None], positive[None], draws.place.double()[None])
    point, corners = reference.point[0], center_to_corners(objects)
    inner = inner_distance(point, corners)
    assert (inner[positive] >= 0).all()
    assert (inner[~positive] < 0).all()
    in_noised = inner_distance(point, center_to_corners(noised)) >= -1e-9
    assert in_noised[positive].float().mean() > 0.99  # all but boxes thinner than the clipping of logits
    sticks_out = inner_distance(center_to_corners(noised).unflatten(-1, (2, 2)), corners[:, None]).amin(-1) < -1e-3
    assert in_noised[~positive & sticks_out].all()
    within = (reference.point - reference.origin) / reference.cell
    assert ((within >= -1e-9) & (within <= 1 + 1e-9)).all()
    assert (reference.sides >= 0).all()
    steps = reference.origin[0] * torch.tensor([9.0, 7.0]).double()
    torch.testing.assert_close(steps, steps.round())
    assert (steps <= torch.tensor([8.0, 6.0])).all()
    low, high = reference.sides[0, in_noised].chunk(2, -1)
    expected = center_to_corners(noised)[in_noised]
    torch.testing.assert_close(torch.cat((point[in_noised] - low, point[in_noised] + high), -1), expected)
    again = geometry.encode_noised(noised[None], objects[None], positive[None], draws.place.double()[None])
    assert torch.equal(again.point, reference.point)


def test_a_negative_of_an_object_that_fills_the_image_stays_in_its_box():
    geometry = SalientPointGeometry(grid=(2, 2))
    whole, box = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]), torch.tensor([[[0.5, 0.5, 0.4, 0.4]]])
    reference = geometry.encode_noised(box, whole, torch.zeros(1, 1, dtype=torch.bool), torch.rand(1, 1, 2))
    assert (inner_distance(reference.point, center_to_corners(box)) > 0).all()


@pytest.mark.parametrize(
    ("box", "truth", "positive", "room"),
    [  # all as corners
        ((0.1, 0.2, 0.6, 0.7), (0.3, 0.1, 0.9, 0.5), True, (0.3, 0.2, 0.6, 0.5)),
        ((-0.1, 0.2, 0.6, 0.7), (0.0, 0.1, 0.4, 1.0), True, (0.0, 0.2, 0.4, 0.7)),
        ((0.1, 0.1, 0.9, 0.5), (0.4, 0.2, 0.7, 0.9), False, (0.1, 0.1, 0.4, 0.5)),  # left of the object
        ((0.1, 0.1, 0.5, 0.9), (0.2, 0.4, 0.9, 0.7), False, (0.1, 0.1, 0.5, 0.4)),  # above
        ((0.1, 0.1, 0.9, 0.5), (0.0, 0.2, 0.6, 0.9), False, (0.6, 0.1, 0.9, 0.5)),  # right of it
        ((0.1, 0.1, 0.5, 0.9), (0.2, 0.0, 0.9, 0.6), False, (0.1, 0.6, 0.5, 0.9)),  # below
        ((-0.2, 0.2, 0.4, 0.6), (0.1, 0.1, 0.9, 0.9), False, (0.0, 0.2, 0.1, 0.6)),  # what of the box is in the image
        ((0.7, 0.2, 1.3, 0.6), (0.6, 0.1, 0.9, 0.9), False, (0.9, 0.2, 1.0, 0.6)),
        ((0.2, 0.7, 0.6, 1.3), (0.1, 0.6, 0.9, 0.9), False, (0.2, 0.9, 0.6, 1.0)),
        ((0.3, 0.3, 0.5, 0.5), (0.35, 0.2, 0.9, 0.9), False, (0.3, 0.3, 0.35, 0.5)),  # small, but the box's own
        ((0.4, 0.4, 0.6, 0.6), (0.35, 0.3, 0.8, 0.9), False, (0.0, 0.0, 0.35, 1.0)),  # in the object: of the image
        ((0.4, 0.4, 0.6, 0.6), (0.1, 0.2, 0.65, 0.9), False, (0.65, 0.0, 1.0, 1.0)),
        ((0.4, 0.4, 0.6, 0.6), (0.1, 0.4, 0.9, 0.9), False, (0.0, 0.0, 1.0, 0.4)),
        ((0.4, 0.4, 0.6, 0.6), (0.1, 0.2, 0.9, 0.7), False, (0.0, 0.7, 1.0, 1.0)),
        ((0.3, 0.3, 0.5, 0.5), (0.30005, 0.2, 0.9, 0.9), False, (0.0, 0.0, 0.30005, 1.0)),  # too thin to be one
        ((1.1, 0.2, 1.3, 0.6), (1.1, 0.2, 1.3, 0.6), True, (1.0, 0.2, 1.0, 0.6)),  # an object beyond the image
        ((0.3, 0.3, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0), False, (0.3, 0.3, 0.5, 0.5)),  # nothing is beside it
    ],
)
def test_where_a_noised_point_is_drawn(box, truth, positive, room):
    place = (0.25, 0.75)
    point = [room[a] + (0.05 + 0.9 * place[a]) * (room[2 + a] - room[a]) for a in (0, 1)]
    boxes, truths = (
        torch.tensor([[((a + c) / 2, (b + d) / 2, c - a, d - b)]], dtype=torch.float64) for a, b, c, d in (box, truth)
    )
    draw = torch.tensor([[place]], dtype=torch.float64)
    found = SalientPointGeometry(grid=(4, 5)).encode_noised(boxes, truths, torch.tensor([[positive]]), draw)
    assert found.point[0, 0].tolist() == pytest.approx(point)
    sides = (point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1])
    assert found.sides[0, 0].tolist() == pytest.approx([max(side, 0) for side in sides])
    assert found.origin[0, 0].tolist() == pytest.approx([min(int(point[0] * 5), 4) / 5, int(point[1] * 4) / 4])
    assert torch.equal(found.previous, found.point)
