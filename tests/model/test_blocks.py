"""Training blocks: their arithmetic against plain loops, who sees whom, and what they leave alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import detrkit
from detrkit.attention.multihead import MultiHeadAttention, self_attend, split_heads
from detrkit.blocks.base import Block
from detrkit.blocks.denoising import Draws
from detrkit.blocks.dense import DenseQueries
from detrkit.errors import UserError
from detrkit.geometry.base import Geometry
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import RecipeError
from detrkit.recipe.registry import load_registered_parts, parts
from detrkit.structures import Extra, Output, QueryLayout
from tests.small import SMALL as ANY

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
SMALL = [*ANY, "detector.classes=5"]
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
    owners = torch.tensor([group for group, size in enumerate(slots) for _ in range(size)])
    layout = QueryLayout(queries=5, groups=groups, slots=owners if slots else None)
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


@pytest.mark.parametrize("second", [0, 4, 6])
@pytest.mark.parametrize("slots", [(), (2, 2, -1)])
@pytest.mark.parametrize("groups", [1, 3])
def test_numbers_among_queries_are_added_where_no_two_answer_for_one_object(groups, slots, second):
    """The second set sees itself alone, and has no such numbers."""
    owners = [group for group, size in enumerate(slots[:2]) for _ in range(size)] + [-1] * (slots[2:] == (-1,))
    layout = QueryLayout(4, groups=groups, slots=torch.tensor(owners) if owners else None, second=second)
    owner = owners + ["answer"] * 4
    for group in range(1, groups):
        owner += [f"group {group}"] * 4
    owner += ["second"] * second
    sees = torch.tensor([[a == b or (isinstance(a, int) and b == "answer") for b in owner] for a in owner])
    assert torch.equal(layout.attention_mask(), ~sees)
    torch.manual_seed(0)
    total = len(owner)
    query, key, value = torch.randn(3, 2, 2, total, 4, dtype=torch.float64)
    numbers = torch.randn(2, 2, total, total, dtype=torch.float64)
    without = torch.tensor([name == "second" for name in owner])
    logits = query @ key.mT / 2 + numbers.masked_fill(without[:, None] & without, 0)
    expected = logits.masked_fill(~sees, -torch.inf).softmax(-1) @ value
    found = self_attend(query, key, value, layout, dropout=0.0, bias=lambda at: numbers[:, :, at, at])
    torch.testing.assert_close(found, expected.transpose(1, 2).flatten(2))
    if groups == 1 and not owners and not second:
        alone = self_attend(query, key, value, None, dropout=0.0, bias=lambda at: numbers[:, :, at, at])
        torch.testing.assert_close(alone, found)


def test_packed_projections_see_the_layout():
    attention = MultiHeadAttention(width=8, heads=2).double()
    content = torch.randn(2, 10, 8, dtype=torch.float64)
    mixed = attention(content, content, content, layout=QueryLayout(queries=5, groups=2))
    for group in (slice(0, 5), slice(5, 10)):
        alone = content[:, group]
        torch.testing.assert_close(mixed[:, group], attention(alone, alone, alone))


def test_a_mask_is_made_once_for_all_layers():
    layout = QueryLayout(queries=7, slots=torch.tensor([0, 0, 1, 1, -1]))
    assert layout.visible is layout.visible


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


class OneGroup(QueryGenerator):
    """A query generator that was not made for groups."""

    def __init__(self, *, width: int):
        super().__init__()


class NoBoxes(Geometry):
    """A geometry that keeps nothing of a box."""

    holds_boxes = False

    def __init__(self):
        super().__init__()
        self.offset_widths = {"point": 2}


def test_refusals_say_why(monkeypatch):
    load_registered_parts()
    monkeypatch.setitem(parts("queries"), "one_group", OneGroup)
    monkeypatch.setitem(parts("geometry"), "no_boxes", NoBoxes)
    with pytest.raises(UserError, match=r'blocks.groups wants 3 groups of queries, and queries "one_group" makes one'):
        detrkit.build_detector(detrkit.load_recipe("base/dab_detr", [*SMALL, "queries={type='one_group'}", GROUPS]))
    with pytest.raises(UserError, match="keep nothing of a box"):
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


@pytest.mark.parametrize(("queries", "pairs"), [(3, 3), (7, 5), (12, 10), (100, 20)])
def test_dense_pairs_are_as_many_as_queries_allow(queries, pairs):
    """Five objects, up to four queries for each."""
    costs = np.random.default_rng(0).random((1, queries, 5))
    matches = DenseQueries(count=queries)._matches(costs, (5,))
    assert matches.query.shape == matches.target.shape == (1, pairs)
    assert len(matches.query.unique()) == pairs
    assert matches.target.unique().tolist() == list(range(5)) or queries < 5


@pytest.mark.parametrize("block", [DN, CDN])
def test_truths_that_blocks_cannot_read_are_named(block):
    """The criterion names them, too, and sees them after the blocks."""
    detector, criterion = build("base/dab_detr", block)
    images, targets = batch(2, 0)
    first, empty = targets
    narrow = [{**one, "labels": one["labels"].int()} for one in targets]
    assert criterion(detector(images, None, narrow), narrow)["total"].isfinite()
    for given, said in (
        ([first], "1 targets for a batch of 2 images"),
        ([{**first, "labels": torch.tensor([1, 7])}, empty], r"targets\[0\] has the label 7; labels are 0 to 4"),
        ([{**first, "labels": torch.ones(2)}, empty], r"targets\[0\] has labels of torch\.float32"),
        ([{**first, "boxes": first["boxes"][:1]}, empty], r"targets\[0\] has 2 labels and 1 boxes"),
        ([{**first, "boxes": 100 * first["boxes"]}, empty], r"targets\[0\] has a box with \d"),
        ([{"class_labels": first["labels"], "boxes": first["boxes"]}, empty], r"targets\[0\] has no 'labels'"),
    ):
        with pytest.raises(UserError, match=said):
            detector(images, None, given)


class Tokens(Block):
    """Each token of the encoder as a prediction around its cell, as an auxiliary dense head makes them (Co-DETR)."""

    def __init__(self, width, classes):
        super().__init__()
        self.head = torch.nn.Linear(width, classes)

    def supervise(self, answer):
        centers = answer.encoded.centers().expand(len(answer.encoded.tokens), -1, -1)
        boxes = torch.cat((centers, torch.full_like(centers, 0.2)), dim=-1)
        return Extra(Output(self.head(answer.encoded.tokens)[None], boxes[None]))


def test_a_block_may_learn_from_the_encoder_s_tokens():
    """The answer had the tokens alone, without the shapes and the mask that say where they are."""
    recipe = detrkit.load_recipe("base/dab_detr", [*SMALL, *SIZES["base/dab_detr"]])
    detector, criterion = detrkit.build_detector(recipe).train(), detrkit.build_criterion(recipe)
    detector.blocks["tokens"] = Tokens(32, 5)
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, :, 70:] = True
    targets = [{"labels": torch.tensor([1, 3]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.1]])}]
    output = detector(torch.randn(1, 3, 64, 96), mask, targets)
    assert output.extras["tokens"].output.boxes.shape == (1, 1, sum(h * w for h, w in output.encoded.shapes), 4)
    terms = criterion.weighted(output, targets)
    terms["tokens/class"].backward()
    for module in (detector.encoder, detector.blocks["tokens"].head):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(p.grad is None for p in detector.decoder.parameters())
