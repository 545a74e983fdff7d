"""Every kind of detector that a shipped recipe describes, made small: gradients, strange batches, and invariances."""

import pytest
import torch

from detrkit.detector import Detector
from detrkit.engine.optimiser import build_optimiser
from detrkit.structures import Output
from tests.model.kinds import CLASSES, QUERIES, batch, build, kinds, recipe

CLOSE = {"rtol": 1e-6, "atol": 1e-8}
"""In float64; losses that torchvision gives are float32."""
NOTHING_YET = ("decoder.layers.0.self_attention.", "decoder.layers.0.norm1.weight")
"""May have a gradient of zero: where content starts at zero (DETR, DAB-DETR), the first layer mixes zeros."""


@pytest.fixture(scope="module", params=kinds())
def system(request):
    """Detector and criterion, built once for all that is asked of them here; nobody changes a weight but the last."""
    made = recipe(request.param)
    return made, *build(made)


def losses_of(detector, criterion, images, targets, mask=None):
    torch.manual_seed(2)  # the noise, and what else is drawn
    return criterion(detector.train()(images, mask, targets), targets)


def predicted(detector, images):
    """What evaluation sees of a batch: a dict of tensors, images first."""
    with torch.no_grad():
        if isinstance(detector, Detector):
            output = detector.eval()(images)
            return {"logits": output.logits.transpose(0, 1), "boxes": output.boxes.transpose(0, 1)}
        found = detector.eval().detect(images, None, [images.shape[-2:]] * len(images))
        return {key: torch.stack([one[key][:5] for one in found]) for key in ("scores", "boxes")}


def test_a_gradient_in_every_parameter_that_trains(system):
    _, detector, criterion = system
    images, targets = batch()
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:], mask[1, :, 70:] = True, True
    losses = losses_of(detector, criterion, images.masked_fill(mask[:, None], 0), targets, mask)
    assert all(value.isfinite() for value in losses.values())
    losses["total"].backward()
    silent = [n for n, p in detector.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    frozen = [n for n, p in detector.named_parameters() if not p.requires_grad and p.grad is not None]
    detector.zero_grad(set_to_none=True)
    silent = [name for name in silent if not name.startswith(NOTHING_YET)]
    assert not silent, f"trained, but no gradient arrives: {silent}"
    assert not frozen


EDGES = {
    "no objects": ([], []),
    "no objects in one image": ([], [[0.5, 0.5, 0.2, 0.3]]),
    "boxes of a pixel": ([[0.5, 0.5, 1 / 96, 1 / 64]], [[0.5 / 96, 0.5 / 64, 1 / 96, 1 / 64]]),
    "more objects than queries": ([[0.1 + 0.05 * i, 0.5, 0.1, 0.1] for i in range(QUERIES + 4)], []),
}


@pytest.mark.parametrize("edge", EDGES)
def test_losses_and_gradients_are_finite(system, edge):
    _, detector, criterion = system
    images, _ = batch()
    targets = [
        {"labels": torch.arange(len(rows)) % CLASSES, "boxes": torch.tensor(rows).reshape(-1, 4)}
        for rows in EDGES[edge]
    ]
    losses = losses_of(detector, criterion, images, targets)
    losses["total"].backward()
    assert not [name for name, value in losses.items() if not value.isfinite()]
    assert not [n for n, p in detector.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    detector.zero_grad(set_to_none=True)


def test_the_order_of_the_truths_says_nothing(system):
    """But in denoising, which draws noise for one object after the other, and in the block "mixed", where a query that
    overlaps neither of two objects of one class counts for the first.
    """
    _, detector, criterion = system
    images, targets = batch((4, 2))
    turned = [{key: value.flip(0) for key, value in target.items()} for target in targets]
    with torch.no_grad():
        first, second = (losses_of(detector, criterion, images, truth) for truth in (targets, turned))
    assert first.keys() == second.keys()
    ordered = tuple(name for name in first if name.startswith(("denoising/", "mixed/")))
    ordered += ("total",) if ordered else ()
    for name, value in first.items():
        if name not in ordered:
            torch.testing.assert_close(second[name], value, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_an_image_of_a_batch_is_what_it_is_alone(system):
    _, detector, _ = system
    images, _ = batch()
    together, alone = predicted(detector, images), predicted(detector, images[1:])
    for name, values in together.items():
        torch.testing.assert_close(values[1:], alone[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_the_losses_of_pieces_add_up_to_the_batch_s(system):
    _, detector, criterion = system
    if not isinstance(detector, Detector):
        pytest.skip("computes its losses itself: a mean over the images, which tests/model/test_faster_rcnn.py holds")
    images, targets = batch((3, 1))
    whole = {name: p.grad for name, p in gradients(detector, criterion, [(images, targets)])}
    objects = torch.tensor(4.0, dtype=torch.float64)
    pieces = [(images[i : i + 1], targets[i : i + 1]) for i in (0, 1)]
    for name, p in gradients(detector, criterion, pieces, objects, 2):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, whole[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    detector.zero_grad(set_to_none=True)


def gradients(detector, criterion, pieces, objects=None, images=None):
    """The parameters with the gradients of all pieces in them, in evaluation mode, where nothing is drawn."""
    detector.zero_grad(set_to_none=True)
    for piece, targets in pieces:
        output = detector.eval()(piece)
        assert isinstance(output, Output)
        criterion(output, targets, objects, images)["total"].backward()
    return list(detector.named_parameters())


def test_a_step_leaves_what_is_frozen(system):
    """The last test of a system: it changes weights."""
    made, detector, criterion = system
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimiser = build_optimiser(detector, made.section("train"))
    losses_of(detector, criterion, *batch())["total"].backward()
    optimiser.step()
    after = detector.state_dict()
    frozen = [name for name, p in detector.named_parameters() if not p.requires_grad]
    changed = [name for name in frozen if not torch.equal(after[name], before[name])]
    assert not changed
    trained = [name for name, p in detector.named_parameters() if p.requires_grad]
    assert sum(not torch.equal(after[name], before[name]) for name in trained) > 0.9 * len(trained)
