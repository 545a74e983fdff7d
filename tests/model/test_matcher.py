"""One matcher for several groups of queries and several outputs at once, and several queries for each object."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from detrkit.losses.criterion import Criterion
from detrkit.matching.costs import FocalCost, L1Cost
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.matching.many_to_one import ManyToOneMatcher
from detrkit.structures import SILENT, Matches, Targets
from tests.model.test_matching_and_losses import ALL_COSTS, matcher, scene


def test_each_group_of_queries_is_matched_on_its_own():
    output, targets = scene((2, 4), queries=6)
    padded, made = Targets.pad(targets, torch.float64), matcher(*ALL_COSTS)
    found = made(replace(output, groups=2), padded)
    first, second = (made(output.rows(slice(start, start + 3)), padded) for start in (0, 3))
    for image, count in enumerate((2, 3)):
        here, there = found.image == image, first.image == image
        assert here.sum() == 2 * count
        queries = torch.cat((first.query[:, there], second.query[:, there] + 3), dim=1)
        objects = torch.cat((first.target[:, there], second.target[:, there]), dim=1)
        assert torch.equal(found.query[:, here], queries)
        assert torch.equal(found.target[:, here], objects)


def test_several_requests_are_matched_as_each_alone():
    requests = [(output, Targets.pad(targets, torch.float64)) for output, targets in (scene(), scene((1, 4), seed=1))]
    made = matcher(*ALL_COSTS)
    for (output, targets), found in zip(requests, made.match(requests), strict=True):
        alone = made(output, targets)
        torch.testing.assert_close(vars(found), vars(alone), rtol=0, atol=0)


def many(**options):
    return ManyToOneMatcher(costs={"box": L1Cost()}, count=4, **options)


@pytest.mark.parametrize(("objects", "each"), [(0, 0), (1, 4), (2, 3), (3, 2), (6, 1), (7, 1)])
def test_objects_share_half_of_the_queries_at_most_but_have_one_each(objects, each):
    output, targets = scene((objects, 1), queries=12)
    layers = torch.tensor([0, 0, 1])
    output = replace(output.rows(slice(None)), logits=output.logits[layers], boxes=output.boxes[layers])
    first, second, last = many()(output, Targets.pad(targets, torch.float64))
    for matches, copies, lone in ((first, each, 4), (second, each, 4), (last, min(each, 1), 1)):
        here = matches.image == 0
        assert matches.target[0, here].bincount().tolist() == [copies] * objects
        assert len(matches.query[0, here].unique()) == copies * objects
        assert matches.target[0, ~here].tolist() == [0] * lone


def test_an_object_s_queries_count_by_their_rank_in_each_group():
    output, targets = scene((3, 0, 1), queries=24)
    for image, one in enumerate(targets):  # predictions around the objects, so that they overlap
        for n in range(24 if len(one["boxes"]) else 0):
            output.boxes.data[:, image, n] = (
                one["boxes"][n % len(one["boxes"])] + 0.2 * output.boxes.data[:, image, n] - 0.08
            )
    output, padded = replace(output, groups=2), Targets.pad(targets, torch.float64)
    answer, extra = many(tau=2.5, alpha=0.7).match([(output, padded)] * 2)
    assert [one.query.shape[1] for one in (*answer, *extra)] == [2 * (3 * 2 + 4), 2 * (3 + 1), *[2 * (3 * 2 + 4)] * 2]
    for layer, matches in ((0, answer[0]), (1, answer[1]), (0, extra[0]), (1, extra[1])):
        assert (matches.query >= 0).all()  # counted from the end they would be right all the same
        owned = {}
        for image, n, t, weight in zip(
            matches.image, matches.query[0], matches.target[0], matches.weight[0], strict=True
        ):
            label, true = targets[image]["labels"][t], targets[image]["boxes"][t].double()
            p = output.logits[layer, image, n, label].sigmoid().item()
            corners = (box_convert(box, "cxcywh", "xyxy")[None] for box in (output.boxes[layer, image, n], true))
            quality = p**0.7 * box_iou(*corners).item() ** 0.3
            owned.setdefault((int(image), int(t), int(n) // 12), []).append((quality, weight.item()))
        assert len(owned) == 2 * (3 + 1)
        for pairs in owned.values():
            weights = [weight for _, weight in sorted(pairs, reverse=True)]
            assert weights == pytest.approx([math.exp(-rank / 2.5) for rank in range(len(pairs))], rel=1e-12)


@pytest.mark.parametrize(
    ("matcher", "loss"),
    [(HungarianMatcher, "focal"), (HungarianMatcher, "varifocal"), (ManyToOneMatcher, "iou_aware")],
)
def test_a_query_that_does_not_stand_learns_the_box_but_no_class(matcher, loss):
    """Three queries stand for five objects; a silenced logit that was to be high would cost 10,000."""
    output, targets = scene((5, 0, 1), queries=6)
    standing = torch.ones(output.logits.shape[:3], dtype=torch.bool)
    standing[1, :, 3:] = False
    silenced = replace(output, logits=output.logits.masked_fill(~standing[..., None], SILENT), standing=standing)
    made = Criterion(matcher=matcher(costs={"class": FocalCost(), "box": L1Cost()}), losses={"class": loss})
    assert made(silenced, targets)["class"] < 5
    pairs = made.matcher(silenced, Targets.pad(targets, torch.float64))
    last = pairs if isinstance(pairs, Matches) else pairs[-1]
    assert last.query.shape[1] == 5 + 1
    assert last.teaches[-1].tolist() == (last.query[-1] < 3).tolist()
    assert last.teaches[-1].sum() == 3 + 1


@pytest.mark.parametrize("made", [matcher(*ALL_COSTS), many()])
def test_no_queries_have_no_pairs(made):
    output, targets = scene((2, 0), queries=4)
    none = output.rows(slice(0, 0))
    found = made(none, Targets.pad(targets, torch.float64))
    for one in [found] if isinstance(found, Matches) else found:
        assert one.query.shape[1] == one.target.shape[1] == len(one.image) == 0
    losses = Criterion(matcher=made, losses={"box": "l1", "giou": "giou"})(none, targets)
    assert losses["total"].item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictions_in_half_precision_are_matched_as_in_float32(dtype):
    """By the matcher alone, too: PyTorch has no distances in half precision."""
    output, targets = scene((2, 4))
    low = replace(output, logits=output.logits.to(dtype), boxes=output.boxes.to(dtype))
    made = matcher(FocalCost(), L1Cost())
    found = made(low, Targets.pad(targets, dtype))
    wide = Targets.pad([{**one, "boxes": one["boxes"].to(dtype).float()} for one in targets])
    torch.testing.assert_close(vars(found), vars(made(low.float(), wide)), rtol=0, atol=0)
