"""One matcher for several groups of queries and several outputs at once."""

from dataclasses import replace

import torch

from detrkit.structures import Targets
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
