"""DETR's softmax over classes and "no object": cost, loss, detections."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from detrkit.blocks.denoising import Denoising
from detrkit.detections import DetectOptions, select
from detrkit.detector import Detector
from detrkit.errors import UserError
from detrkit.geometry.box import BoxGeometry
from detrkit.losses.criterion import Criterion
from detrkit.losses.terms import SoftmaxLoss
from detrkit.matching.base import Matcher
from detrkit.matching.costs import SoftmaxCost
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.structures import Matches, Output, Targets

LAYERS, BATCH, QUERIES, CLASSES = 2, 3, 5, 4


class FixedMatcher(Matcher):
    """Object t of an image goes to query t."""

    def match(self, requests):
        return [self.pairs(output, targets) for output, targets in requests]

    def pairs(self, output, targets):
        pairs = [(image, n) for image, count in enumerate(targets.counts) for n in range(count)]
        image, query = (torch.tensor(column, dtype=torch.int64) for column in zip(*pairs, strict=True))
        query = query.expand(len(output.logits), -1)
        return Matches(image, query, query)


def predictions(batch=BATCH):
    torch.manual_seed(0)
    logits = torch.randn(LAYERS, batch, QUERIES, CLASSES + 1, dtype=torch.float64)
    boxes = torch.rand(LAYERS, batch, QUERIES, 4).double()
    return Output(logits, boxes, background=True)


def truth(counts=(2, 1, 3)):
    return [{"labels": torch.arange(n) % CLASSES, "boxes": torch.rand(n, 4).double()} for n in counts]


def test_cost_is_minus_the_probability():
    output, targets = predictions(), Targets.pad(truth())
    cost = SoftmaxCost()(output, targets)
    assert cost[1, 2, 4, 1] == -output.logits[1, 2, 4].softmax(-1)[targets.labels[2, 1]]


@pytest.mark.parametrize("counts", [(2, 1, 3), (QUERIES,) * BATCH])
def test_loss_is_torchs_weighted_mean(counts):
    output, targets = predictions(), truth(counts)
    criterion = Criterion(matcher=FixedMatcher(), losses={"class": SoftmaxLoss(background=0.25)})
    losses = criterion(output, targets)
    label = torch.full((BATCH, QUERIES), CLASSES)
    for image, one in enumerate(targets):
        label[image, : len(one["labels"])] = one["labels"]
    weight = torch.tensor([1.0] * CLASSES + [0.25], dtype=torch.float64)
    for name, logits in (("class.0", output.logits[0]), ("class", output.logits[1])):
        assert losses[name] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), label.flatten(), weight).item())


def test_pieces_add_up_to_the_batch():
    output, targets = predictions(), truth()
    criterion = Criterion(matcher=FixedMatcher(), losses={"class": SoftmaxLoss()})
    whole = criterion(output, targets)["total"]
    objects = torch.tensor(6.0)
    pieces = [
        criterion(
            Output(output.logits[:, part], output.boxes[:, part], background=True),
            targets[part],
            objects,
            BATCH,
        )["total"]
        for part in (slice(0, 2), slice(2, 3))
    ]
    assert sum(pieces) == pytest.approx(whole.item())


def test_denoising_in_two_processes_is_that_of_the_batch():
    """All its queries have an object, so none counts as background, however many objects the other process has."""
    torch.manual_seed(0)
    block, entropy, terms = Denoising(width=8, classes=CLASSES, geometry=BoxGeometry(), groups=3), 0.0, []
    for count in (5, 1):
        targets = truth((count, count))
        slots = block.slots(targets, torch.float64)
        logits = torch.randn(LAYERS, 2, slots.room, CLASSES + 1, dtype=torch.float64)
        boxes = torch.rand(LAYERS, 2, slots.room, 4, dtype=torch.float64)
        extra = slots.read(Output(logits, boxes, background=True))
        terms.append(SoftmaxLoss()(extra.output, extra.truth(Targets.pad(targets)), extra.matches, torch.tensor(6.0)))
        labels = [targets[i]["labels"][j] for i, j in zip(slots.image, slots.target, strict=True)]
        picked = logits[:, slots.image, slots.slot].log_softmax(-1)[:, torch.arange(len(labels)), torch.tensor(labels)]
        entropy = entropy - picked.sum(1)
    torch.testing.assert_close(sum(terms) / 2 / block.repeats, entropy / (12 * block.repeats))


@pytest.mark.parametrize(("counts", "left_over"), [((0, 0, 0), 1), ((7, 0, 1), 2), ((2, 1, 3), 0)])
def test_the_sum_of_weights_beside_torchs(counts, left_over):
    """No object counts as one that found no query; so does each beyond the number of queries (see `SoftmaxLoss`)."""
    output, targets = predictions(), Targets.pad(truth(counts), torch.float64)
    pairs = [(image, n) for image, count in enumerate(counts) for n in range(min(count, QUERIES))]
    image, query = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(-1)
    query = query.expand(LAYERS, -1)
    objects = torch.tensor(max(1.0, sum(counts)))
    loss = SoftmaxLoss(background=0.25)(output, targets, Matches(image, query, query), objects)
    label = torch.full((BATCH, QUERIES), CLASSES)
    for row, count in enumerate(counts):
        label[row, : min(count, QUERIES)] = (torch.arange(count) % CLASSES)[:QUERIES]
    weight = torch.tensor([1.0] * CLASSES + [0.25], dtype=torch.float64)
    official = F.cross_entropy(output.logits[-1].flatten(0, 1), label.flatten(), weight)
    weights = weight[label].sum()
    torch.testing.assert_close(loss[-1], official * weights / (weights + 0.75 * left_over))


@pytest.mark.parametrize("keep", [2, 300])
def test_a_query_gives_one_detection_of_its_best_class(keep):
    detector = Detector.__new__(Detector)
    torch.nn.Module.__init__(detector)
    detector.detect_options = DetectOptions(keep=keep, scores="softmax")
    output = predictions()
    found = detector.select(output, torch.tensor([[10, 20]] * BATCH))
    for image, one in enumerate(found):
        scores, labels = output.logits[-1, image].softmax(-1)[:, :CLASSES].max(-1)
        order = scores.argsort(descending=True)[:keep]
        assert one["queries"].tolist() == order.tolist()
        assert torch.equal(one["scores"], scores[order])
        assert torch.equal(one["labels"], labels[order])


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_groups_share_the_weight_of_one(groups):
    """A group's loss is the same mean however many others there are, and each weighs 1 / K."""
    output = predictions()
    targets = Targets.pad(truth(), torch.float64)
    loss = SoftmaxLoss()
    pairs = FixedMatcher().pairs(output, targets)
    objects = torch.tensor(float(sum(targets.counts)))
    alone = loss(output, targets, pairs, objects)
    many = replace(output, logits=output.logits.repeat(1, 1, groups, 1), groups=groups)
    lifted = [pairs.query + group * QUERIES for group in range(groups)]
    repeated = Matches(pairs.image.repeat(groups), torch.cat(lifted, 1), pairs.target.repeat(1, groups))
    torch.testing.assert_close(loss(many, targets, repeated, objects), groups * alone)


def test_what_takes_the_last_logit_for_no_object_refuses_an_output_where_it_is_a_class():
    output, targets = replace(predictions(), background=False), truth()
    message = r'takes the last logit for "no object", and this output says .*Output\(\.\.\., background=True'
    with pytest.raises(UserError, match=r"losses\.class " + message):
        Criterion(matcher=FixedMatcher(), losses={"class": SoftmaxLoss()})(output, targets)
    by_cost = Criterion(matcher=HungarianMatcher(costs={"class": "softmax"}), losses={"box": "l1"})
    with pytest.raises(UserError, match=r"matcher\.costs\.class " + message):
        by_cost(output, targets)
    with pytest.raises(UserError, match=r'detect\.scores = "softmax" ' + message):
        select(output, [(10, 20)] * BATCH, DetectOptions(scores="softmax"))
    select(output, [(10, 20)] * BATCH, DetectOptions())


@pytest.mark.parametrize("sizes", [[(10, 20)], [(10, 20, 3)] * BATCH, torch.tensor([10, 20])])
def test_sizes_are_of_every_image(sizes):
    with pytest.raises(UserError, match=rf"they are \[B, 2\], \(height, width\) of each of {BATCH} images"):
        select(predictions(), sizes, DetectOptions())
