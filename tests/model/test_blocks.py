"""Training blocks: their arithmetic against plain loops, who sees whom, and what they leave alone."""

import itertools
from dataclasses import replace

import pytest
import torch

import detrkit
from detrkit.attention.multihead import MultiHeadAttention, self_attend, split_heads, visibility
from detrkit.blocks.denoising import ContrastiveDenoising, Denoising, Draws, Noise
from detrkit.boxes import center_to_corners
from detrkit.errors import UserError
from detrkit.geometry.base import Geometry
from detrkit.geometry.box import BoxGeometry
from detrkit.recipe import RecipeError
from detrkit.recipe.registry import parts
from detrkit.sap.geometry import SalientPointGeometry
from detrkit.sap.inner import inner_distance
from detrkit.structures import Extra, Queries, QueryLayout, Reference
from tests.parity import GOLDEN, golden, stored_draws

GROUPS = "blocks.groups.count=3"
DN = "blocks.denoising.groups=2"
CDN = "blocks.denoising={type='contrastive', count=8}"
BLOCKS = {
    "none": [],
    "denoising": [DN],
    "contrastive": [CDN],
    "groups": [GROUPS],
    "groups and denoising": [GROUPS, DN],
    "groups and contrastive": [GROUPS, CDN],
}
SMALL = [
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "detector.classes=5",
    "detector.width=32",
    "detector.heads=2",
    "encoder.layers=1",
    "encoder.feedforward=32",
    "decoder.layers=2",
    "decoder.feedforward=32",
]
SIZES = {
    "base/dab_detr": ["queries.count=6"],
    "base/dn_detr": ["queries.count=6"],
    "base/sap_detr": ["queries.grid=[2, 3]"],
}


def build(base, *overrides, dtype=torch.float64):
    torch.manual_seed(0)
    recipe = detrkit.load_recipe(base, [*SMALL, *SIZES[base], *overrides])
    detector, criterion = detrkit.build_detector(recipe).to(dtype), detrkit.build_criterion(recipe)
    for module in detector.modules():  # heads start at zero, which would hide what is unused
        if isinstance(module, torch.nn.Linear) and (module.weight == 0).all():
            torch.nn.init.normal_(module.weight, std=0.05)
    return detector, criterion


def batch(*counts, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(counts), 3, 64, 64, generator=generator, dtype=dtype)
    targets = [
        {
            "labels": torch.randint(0, 5, (n,), generator=generator),
            "boxes": (torch.rand(n, 4, generator=generator) * 0.4 + 0.3),
        }
        for n in counts
    ]
    return images, targets


def gradients(detector):
    return {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}


def noise(entries, share, signs=False, seed=3):
    """Draws for so many entries, and the function that hands them out."""
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(entries, generator=generator)
    labels = torch.randint(0, 5, (int((flip < share).sum()),), generator=generator)
    sign = torch.randint(0, 2, (entries, 4), generator=generator) if signs else None
    rest = (torch.rand(entries, n, generator=generator) for n in (4, 2))
    return Draws(flip, labels, *rest, sign)


# Who sees whom


@pytest.mark.parametrize("slots", [(), (2, 2, 2), (3, 1)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folded_groups_equal_a_masked_joint_attention(groups, slots):
    layout = QueryLayout(queries=5, groups=groups, slots=slots)
    total = sum(slots) + groups * 5
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 3, total, 8, dtype=torch.float64)
    sets = (
        [[i] * size for i, size in enumerate(slots)] + [["answer"] * 5] + [[f"group {g}"] * 5 for g in range(1, groups)]
    )
    owner = list(itertools.chain(*sets))
    sees = [[a == b or (isinstance(a, int) and b == "answer") for b in owner] for a in owner]
    expected = torch.zeros_like(value)
    for head in (slice(0, 4), slice(4, 8)):
        logits = query[..., head] @ key[..., head].mT / 2
        weights = logits.masked_fill(~torch.tensor(sees), float("-inf")).softmax(-1)
        expected[..., head] = weights @ value[..., head]
    parted = [split_heads(x, 2) for x in (query, key, value)]
    torch.testing.assert_close(self_attend(*parted, layout, dropout=0.0), expected)


def test_packed_projections_see_the_layout():
    attention = MultiHeadAttention(width=8, heads=2).double()
    content = torch.randn(2, 10, 8, dtype=torch.float64)
    mixed = attention(content, content, content, layout=QueryLayout(queries=5, groups=2))
    for group in (slice(0, 5), slice(5, 10)):
        alone = content[:, group]
        torch.testing.assert_close(mixed[:, group], attention(alone, alone, alone))


def test_a_mask_is_made_once_for_a_shape():
    device = torch.device("cpu")
    assert visibility((2, 2), 7, device) is visibility((2, 2), 7, device)
    with torch.inference_mode():
        mask = visibility((3, 3, 3), 4, device)
    assert not mask.is_inference()


@pytest.mark.parametrize("base", ["base/dab_detr", "base/dn_detr", "base/sap_detr"])
@pytest.mark.parametrize("block", [name for name in BLOCKS if name != "none"])
def test_the_answer_is_what_it_is_without_blocks(base, block):
    detector, _ = build(base, *BLOCKS[block])
    images, targets = batch(3, 1)
    with torch.no_grad():
        trained = detector.train()(images, None, targets)
        untold = detector(images)
        evaluated = detector.eval()(images, None, targets)
    assert trained.extras
    for other in (untold, evaluated):
        assert not other.extras
        torch.testing.assert_close(trained.logits, other.logits)
        torch.testing.assert_close(trained.boxes, other.boxes)


def test_no_group_sees_another():
    detector, _ = build("base/dab_detr", *BLOCKS["groups and denoising"])
    images, targets = batch(2, 3)
    detector.blocks["denoising"].draw = lambda entries: noise(entries, 0.2)
    before = detector.train()(images, None, targets)
    with torch.no_grad():
        detector.queries.anchors[6:12] += 1.0
    after = detector(images, None, targets)
    moved = (before.extras["groups"].output.boxes != after.extras["groups"].output.boxes).any(-1).all(0).all(0)
    assert moved.tolist() == [True] * 6 + [False] * 6
    torch.testing.assert_close(before.logits, after.logits)
    torch.testing.assert_close(before.extras["denoising"].output.logits, after.extras["denoising"].output.logits)


# Noise


def queries_like(geometry, batch_size, width=8):
    content = torch.zeros(batch_size, 1, width, dtype=torch.float64)
    return Queries(content, geometry.encode(torch.full((batch_size, 1, 4), 0.5, dtype=torch.float64)))


def clipped(x):
    return min(max(x, 1e-3), 1.0) / (min(max(x, 1e-3), 1.0) + max(1 - x, 1e-3))


def test_denoising_slots_against_a_loop():
    block = Denoising(width=8, classes=5, geometry=BoxGeometry(), groups=3, noise=Noise(label=0.4, box=0.6)).double()
    _, targets = batch(3, 0, 2)
    draws = noise(15, 0.4)
    block.draw = lambda entries: draws
    slots = block.slots(queries_like(block.geometry, 3), targets)
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
    torch.testing.assert_close(slots.content, content)
    torch.testing.assert_close(slots.reference.corners("test"), center_to_corners(boxes), atol=1e-6, rtol=0)


def test_contrastive_slots_against_a_loop():
    geometry = BoxGeometry()
    block = ContrastiveDenoising(
        width=8, classes=5, geometry=geometry, count=6, noise=Noise(label=0.5, box=0.8)
    ).double()
    _, targets = batch(1, 3)
    draws = noise(2 * 2 * 4, 0.5, signs=True)
    block.draw = lambda entries: draws
    slots = block.slots(queries_like(geometry, 2), targets)
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
    start = torch.zeros(len(case.targets()), 1, 8)
    slots = block.slots(Queries(start, Reference(start[..., :2])), case.targets())
    assert slots.sizes == (expected["slots_per_group"],) * expected["groups"]
    stored = case.tensors["input/dn/query_boxes"][:, : sum(slots.sizes)].sigmoid()
    torch.testing.assert_close(slots.reference.corners("test"), center_to_corners(stored), atol=1e-6, rtol=0)
    at = case.tensors["input/dn/batch_index"], case.tensors["input/dn/slot_index"]
    assert torch.equal(slots.content[at], block.labels[case.tensors["input/dn/labels"]])
    mask = ~case.tensors["input/dn/attn_mask"]
    assert torch.equal(visibility(slots.sizes, len(mask) - sum(slots.sizes), mask.device), mask)


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
    assert block.slots(queries_like(block.geometry, 1), targets).sizes == (2 * most,) * groups


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


# Losses


def focal(logit, target):
    p = 1 / (1 + torch.exp(-logit))
    return 0.25 * (1 - p) ** 2 * -torch.log(p) if target else 0.75 * p**2 * -torch.log(1 - p)


@pytest.mark.parametrize("contrastive", [False, True])
def test_denoising_losses_against_a_loop(contrastive):
    detector, criterion = build("base/dab_detr", CDN if contrastive else DN)
    images, targets = batch(3, 1)
    output = detector.train()(images, None, targets)
    extra = output.extras["denoising"]
    losses = criterion(output, targets)
    groups, width = (2, 6) if contrastive else (2, 3)
    if contrastive:
        logits, boxes = (x[-1] for x in (extra.output.logits, extra.output.boxes))
        rows = {(b, s): (logits[b, s], boxes[b, s]) for b in range(2) for s in range(groups * width)}
    else:
        entries = [(b, 3 * g + j) for g in range(2) for b in range(2) for j in range((3, 1)[b])]
        rows = dict(zip(entries, zip(extra.output.logits[-1, 0], extra.output.boxes[-1, 0], strict=True), strict=True))
    class_sum = box_sum = 0.0
    for (image, slot), (logit, box) in rows.items():
        j = slot % width
        is_object = j < len(targets[image]["labels"])
        for k in range(5):
            class_sum = class_sum + focal(logit[k], is_object and k == targets[image]["labels"][j])
        if is_object:
            box_sum = box_sum + (box - targets[image]["boxes"][j]).abs().sum()
    torch.testing.assert_close(losses["denoising/class"], class_sum / (groups * 4), check_dtype=False)
    torch.testing.assert_close(losses["denoising/box"], box_sum / (groups * 4), check_dtype=False)


def test_every_group_weighs_the_same_and_is_matched_on_its_own():
    detector, criterion = build("base/dab_detr", GROUPS)
    images, targets = batch(4, 2)
    output = detector.train()(images, None, targets)
    losses = criterion(output, targets)
    alone = []
    for part in (output, *(output.extras["groups"].output.rows(slice(6 * g, 6 * g + 6)) for g in range(2))):
        alone.append(criterion(replace(part, extras={}, repeats=1), targets))
    torch.testing.assert_close(losses["total"], sum(one["total"] for one in alone) / 3)
    torch.testing.assert_close(losses["class"], alone[0]["class"] / 3)
    torch.testing.assert_close(losses["groups/giou.0"], (alone[1]["giou.0"] + alone[2]["giou.0"]) / 3)


@pytest.mark.parametrize("base", ["base/dab_detr", "base/sap_detr"])
@pytest.mark.parametrize("block", BLOCKS)
def test_pieces_equal_one_batch(base, block):
    """Images are cut up, with the noise that the whole batch would give them.

    Contrastive slots that are left over are background, as published, so there each image has the same number of
    objects; an image without any has slots in a batch, and none in a piece of its own.
    """
    detector, criterion = build(base, *BLOCKS[block])
    images, targets = batch(2, 2) if "contrastive" in block else batch(2, 2, 0)
    copies = 8 if "contrastive" in block else 2  # 4 groups of pairs; 2 groups
    whole = noise(copies * 4, 0.25, signs=True)
    whole = replace(whole, flip=torch.ones_like(whole.flip), labels=whole.labels[:0])
    objects = torch.tensor(4.0, dtype=torch.float64)

    def grads_of(pieces):
        detector.zero_grad()
        for piece in pieces:
            at = [c * 4 + i for c in range(copies) for i in piece[1]]
            cut = Draws(*(t if t is whole.labels else t[at] for t in vars(whole).values()))
            for block in detector.blocks.values():
                block.draw = lambda entries, cut=cut: cut
            part = [targets[i] for i in piece[0]]
            criterion(detector.train()(images[piece[0]], None, part), part, objects)["total"].backward()
        return {name: g.clone() for name, g in gradients(detector).items()}

    pieces = [([0], [0, 1]), ([1], [2, 3]), ([2], [])][: len(targets)]
    one = grads_of([(list(range(len(targets))), [0, 1, 2, 3])])
    several = grads_of(pieces)
    assert one.keys() == several.keys()
    for name in one:
        torch.testing.assert_close(one[name], several[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("base", ["base/dab_detr", "base/dn_detr", "base/sap_detr"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_boxes_give_the_same_graph(base, block, counts):
    detector, criterion = build(base, *BLOCKS[block])
    reached = []
    for number in (counts, (3, 2)):
        images, targets = batch(*number)
        detector.zero_grad()
        losses = criterion(detector.train()(images, None, targets), targets)
        losses["total"].backward()
        assert all(value.isfinite() for value in losses.values())
        reached.append((gradients(detector).keys(), losses.keys()))
        if not sum(number):
            assert all(value == 0 for name, value in losses.items() if name.startswith("denoising/"))
            assert all((g == 0).all() for name, g in gradients(detector).items() if name.startswith("blocks."))
    assert reached[0] == reached[1]


# The matrix of geometries, blocks and attentions

TERMS = {
    "conditional": (["point"], ["content", "point"]),
    "sides": (["point", "side"], ["content", "point", "side"]),
    "salient": (["point", "side"], ["content", "point", "side", "side_directed_gaussian"]),
    "box": (["box"], ["content", "point"]),
}


@pytest.mark.parametrize("geometry", ["box", "salient_point"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("attention", TERMS)
@pytest.mark.parametrize("queries", ["anchor_boxes", "salient_grid"])
def test_every_combination_trains_a_step(geometry, block, attention, queries):
    positions, terms = TERMS[attention]
    kind = ["queries.count=6"] if queries == "anchor_boxes" else ["queries.grid=[2, 3]"]
    torch.manual_seed(0)
    recipe = detrkit.load_recipe(
        "base/dab_detr",
        [
            *SMALL,
            f"queries={{type='{queries}'}}",
            *kind,
            f"geometry={{type='{geometry}'}}",
            f"decoder.positions={positions}",
            f"decoder.cross_attention.terms={terms}",
            *BLOCKS[block],
        ],
    )
    detector, criterion = detrkit.build_detector(recipe), detrkit.build_criterion(recipe)
    images, targets = batch(3, 0, dtype=torch.float32)
    optimiser = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    losses = criterion(detector.train()(images, None, targets), targets)
    losses["total"].backward()
    optimiser.step()
    silent = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    assert losses["total"].isfinite()
    assert all(p.isfinite().all() for p in detector.parameters())


class OneGroup(torch.nn.Module):
    """A query generator that was not made for groups."""

    def __init__(self, *, width: int):
        super().__init__()


class NoBoxes(Geometry):
    """A geometry that boxes cannot be encoded in."""

    def __init__(self):
        super().__init__()


def test_refusals_say_why(monkeypatch):
    monkeypatch.setitem(parts("queries"), "one_group", OneGroup)
    monkeypatch.setitem(parts("geometry"), "no_boxes", NoBoxes)
    with pytest.raises(UserError, match=r'blocks.groups wants 3 groups of queries, and queries "one_group" makes one'):
        detrkit.build_detector(detrkit.load_recipe("base/dab_detr", [*SMALL, "queries={type='one_group'}", GROUPS]))
    with pytest.raises(UserError, match="geometry cannot make references of boxes"):
        build("base/dab_detr", "geometry={type='no_boxes'}", DN)
    with pytest.raises(UserError, match=r'labels = "queries" needs queries.content = "label"'):
        build("base/dab_detr", "blocks.denoising.labels=queries")
    with pytest.raises(UserError, match="a and b both make groups"):
        build("base/dab_detr", "blocks.a={type='groups'}", "blocks.b={type='groups'}")
    with pytest.raises(UserError, match='a block cannot be named "keys"'):
        build("base/dab_detr", "blocks.keys.type=denoising")
    with pytest.raises(RecipeError, match=r"blocks.groups.count.*at least 2"):
        build("base/dab_detr", "blocks.groups.count=1")
    with pytest.raises(RecipeError, match=r"no block .denoise.*denoising"):
        build("base/dab_detr", "blocks.x.type=denoise")


def test_a_block_hides_no_other_training():
    detector, _ = build("base/dab_detr", DN)
    images, targets = batch(2, 1)
    predict = detector.decoder.forward

    def with_proposals(queries, memory):
        output = predict(queries, memory)
        return replace(output, extras={name: Extra(output)})

    detector.decoder.forward = with_proposals
    name = "proposals"
    assert set(detector.train()(images, None, targets).extras) == {"proposals", "denoising"}
    name = "denoising"
    with pytest.raises(UserError, match=r"blocks.denoising: the detector trains something else of that name"):
        detector(images, None, targets)


def test_a_block_can_be_switched_off():
    detector, _ = build("base/dn_detr", "blocks.denoising=none")
    images, targets = batch(2, 1)
    assert not detector.train()(images, None, targets).extras
