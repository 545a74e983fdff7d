"""The criterion: what it divides by, what it leaves out, and what it reports."""

from dataclasses import replace

import pytest
import torch

from detrkit.errors import UserError
from detrkit.losses.criterion import Criterion, class_error
from detrkit.losses.terms import L1Loss
from detrkit.matching.costs import GIoUCost, L1Cost
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.structures import Extra, Matches, Output, Targets
from tests.model.test_matching_and_losses import CLASSES, criterion, matcher, scene


def test_the_class_error_is_of_the_last_layer_s_matched_queries():
    logits = torch.zeros(2, 1, 4, CLASSES)
    logits[0, 0, :, 2] = 1  # the layer before is wrong everywhere
    logits[1, 0, torch.arange(4), torch.tensor([0, 1, 1, 2])] = 1
    output = Output(logits, torch.zeros(2, 1, 4, 4))
    targets = Targets(torch.tensor([[0, 1, 0, 1]]), torch.zeros(1, 4, 4), (4,), 1)
    pairs = torch.arange(4).expand(2, -1)
    assert class_error(output, targets, Matches(torch.zeros(4, dtype=torch.int64), pairs, pairs)).item() == 50
    none = Matches(torch.zeros(0, dtype=torch.int64), *torch.zeros(2, 2, 0, dtype=torch.int64))
    assert class_error(output, targets, none).item() == 0


def test_a_batch_without_objects_counts_one():
    made = criterion()
    assert made.normalizer([{"labels": torch.zeros(0)}] * 2, torch.device("cpu")).item() == 1
    assert made.normalizer([{"labels": torch.zeros(2)}, {"labels": torch.zeros(3)}], torch.device("cpu")).item() == 5


def test_terms_that_ask_for_what_an_extra_does_not_predict_are_left_out():
    output, targets = scene()
    bare = Output(logits=output.logits, boxes=output.boxes)
    made = criterion()
    made.matcher = matcher(GIoUCost())
    terms = made.terms(replace(output, extras={"more": Extra(bare, weight=0.25, copies=3)}), targets)
    assert {name for name in terms if name.startswith("more/")} == {"more/class", "more/box", "more/giou"}
    alone = Criterion(matcher=matcher(GIoUCost()), losses={"box": L1Loss(form="corners")})
    repeated = [{name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in t.items()} for t in targets]
    expected = alone.terms(bare, repeated)  # divided by three times the objects
    torch.testing.assert_close(terms["more/box"], 0.25 * expected["box"])
    with pytest.raises(UserError, match=r"objectness loss needs head\.objectness = true"):
        made.losses["objectness"](bare, Targets.pad(targets), None, None)


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"losses is empty"):
        Criterion(matcher=matcher(L1Cost()), losses={})
    with pytest.raises(UserError, match=r"matcher\.costs is empty"):
        HungarianMatcher(costs={})
