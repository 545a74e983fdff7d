"""The official implementations' numbers: outputs, losses, gradients, matches, detections (float32).

Limits are those of tests/golden/README.md. DETRKIT_GOLDEN names another folder of cases.
"""

from __future__ import annotations

import pytest
import torch

from detrkit.boxes import center_to_corners
from detrkit.structures import Queries, QueryLayout, Targets
from detrkit.zoo.classes import count_classes
from tests.parity import GOLDEN, Run, cases, our_loss

CASES = cases()


@pytest.fixture(scope="module", params=CASES, ids=[path.name for path in CASES])
def run(request) -> Run:
    return Run(request.param)


@pytest.fixture(scope="module")
def output(run):
    return run.predict()


def test_there_are_cases():
    assert CASES, f"no reference case of a known method below {GOLDEN}"


def close(ours: torch.Tensor, expected: torch.Tensor, limit: float, what: str) -> None:
    assert ours.shape == expected.shape, what
    difference = (ours.double() - expected.double()).abs().max().item()
    assert difference <= limit, f"{what}: largest difference {difference:.2e}, limit {limit:.0e}"


def test_every_official_tensor_finds_its_place(run):
    conversion = run.conversion
    assert conversion.complete, conversion.summary()
    assert set(conversion.names) | set(conversion.repeated) == set(run.official)
    assert count_classes(run.official, run.recipe) == run.case.meta["model"]["classes"]
    expected = run.case.meta.get("parameter_count") or run.case.meta.get("parameters") or run.counted()
    parameters = list(run.detector.parameters())
    assert sum(p.numel() for p in parameters) == expected["all"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == expected["trainable"]


def test_outputs_of_every_layer(run, output):
    case = run.case
    ours = {"pred_logits": output.logits, "pred_boxes": output.boxes}
    ours |= {"pred_points": output.points, "pred_objs": output.objectness, "hidden": run.hidden}
    limits = {"pred_logits": 2e-4, "pred_objs": 2e-4, "pred_boxes": 2e-5, "pred_points": 2e-5, "hidden": 1e-4}
    stored = [name for name in case.expected if name.startswith("layer")]
    predicted = {kind for kind, tensor in ours.items() if tensor is not None and kind != "hidden"}
    assert {name.split("/")[1] for name in stored} - {"hidden"} == predicted
    for name in stored:
        layer, kind = name.removeprefix("layer").split("/")
        close(case.cut(name, ours[kind][int(layer)]), case.expected[name], limits[kind], name)


def test_memory(run, output):
    close(run.case.cut("memory", output.memory), run.case.expected["memory"], 1e-4, "memory")


def test_proposals_of_the_encoder(run, output):
    expected = {n.removeprefix("interm/"): t for n, t in run.case.expected.items() if n.startswith("interm/")}
    if not expected:
        pytest.skip("the case has no query selection")
    ours = output.extras["encoder"].output
    close(ours.logits[0], expected["pred_logits"], 2e-4, "logits")
    close(ours.boxes[0], expected["pred_boxes"], 2e-5, "boxes")
    matches = run.criterion.matcher(ours, Targets.pad(run.targets))
    for image, (queries, targets) in enumerate(run.case.meta["expected_indices_encoder"]):
        here = matches.image == image
        assert matches.query[0, here].tolist() == queries
        assert matches.target[0, here].tolist() == targets


def test_losses_and_gradient_norms(run):
    meta = run.case.meta
    losses, norms = run.losses_and_gradients()
    compared = {name: our_loss(name, len(meta["expected_indices"])) for name in meta["expected_losses"]}
    assert {compared[name] for name in meta["loss_weights"]} <= set(losses)
    for official, ours in compared.items():
        if ours is not None:
            expected = meta["expected_losses"][official]
            assert losses[ours] == pytest.approx(expected, rel=1e-4, abs=1e-7), official
    assert losses["total"] == pytest.approx(meta["expected_total"], rel=1e-4)
    expected_norms = {n: v for n, v in meta["expected_grad_norms"].items() if n in run.conversion.names}
    assert len(expected_norms) == len(meta["expected_grad_norms"])
    floor = 1e-3 * max(v for v in expected_norms.values() if v is not None)
    for official, expected in expected_norms.items():
        norm = norms.pop(run.conversion.names[official])
        if expected is None:
            assert norm is None, official
        else:
            assert norm == pytest.approx(expected, rel=2e-3, abs=floor), official
    assert all(norm is None for norm in norms.values()), "a parameter that the official code does not train"


def test_denoising_queries(run):
    tensors = run.case.tensors
    if run.denoising is None:
        pytest.skip("this case has no denoising")
    count, width = run.case.meta["denoising"]["groups"], run.case.meta["denoising"]["slots_per_group"]
    with torch.no_grad():
        output = run.detector.train()(run.images, run.mask, run.targets)
        start = torch.zeros(len(run.targets), 1, run.recipe.get("detector.width"))
        reference = run.denoising.geometry.encode(start[..., :4])
        queries = Queries(start, reference, labels=getattr(run.detector.queries, "labels", None))
        extension = run.detector.blocks.prepare(run.targets)
        slots, extended = extension.slots["denoising"], run.detector.blocks.extend(queries, extension)
        content = run.denoising.content(tensors["input/dn/labels"], queries)
    assert slots.sizes == (width,) * count
    at = tensors["input/dn/batch_index"], tensors["input/dn/slot_index"]
    close(extended.content[:, :-1][at], content, 0, "label vectors")
    assert extended.content[:, :-1].abs().sum(-1).count_nonzero() == len(at[0])
    corners = center_to_corners(tensors["input/dn/query_boxes"][:, : count * width].sigmoid())
    close(slots.reference.corners("the test"), corners, 1e-6, "noised boxes")
    mask = ~tensors["input/dn/attn_mask"]
    layout = QueryLayout(len(mask) - count * width, slots=extended.layout.slots)
    assert torch.equal(layout.visible, mask)
    predicted = output.extras["denoising"].output
    ours = {"pred_logits": predicted.logits, "pred_boxes": predicted.boxes}
    for name in [name for name in run.case.expected if name.startswith("dn/layer")]:
        layer, kind = name.removeprefix("dn/layer").split("/")
        stored = run.case.cut(name, run.case.expected[name])
        limit = 2e-4 if kind == "pred_logits" else 2e-5
        close(ours[kind][int(layer)], stored if run.denoising.background else stored[at][None], limit, name)


def test_matches_of_every_layer(run, output):
    matches = run.criterion.matcher(output, Targets.pad(run.targets))
    for layer, images in enumerate(run.case.meta["expected_indices"]):
        for image, (queries, targets) in enumerate(images):
            here = matches.image == image
            assert matches.query[layer, here].tolist() == queries
            assert matches.target[layer, here].tolist() == targets


def test_detections(run, output):
    detections = run.detector.eval().detect(run.images, run.mask, run.sizes)
    for found, expected in zip(detections, run.case.meta["expected_detections"], strict=True):
        count = len(expected["scores"])
        assert found["labels"][:count].tolist() == expected["labels"]
        close(found["scores"][:count], torch.tensor(expected["scores"]), 1e-4, "scores")
        close(found["boxes"][:count], torch.tensor(expected["boxes"]), 2e-2, "boxes in pixels")
