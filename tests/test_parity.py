"""The official implementations' numbers: outputs, losses, gradients, matches, detections (float32).

Limits are those of tests/golden/README.md. DETRKIT_GOLDEN names another folder of cases.
"""

from __future__ import annotations

import pytest
import torch

from detrkit.structures import Targets
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
    expected = run.case.meta.get("parameter_count") or run.case.meta.get("parameters") or run.counted()
    parameters = list(run.detector.parameters())
    assert sum(p.numel() for p in parameters) == expected["all"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == expected["trainable"]


def test_outputs_of_every_layer(run, output):
    case = run.case
    ours = {"pred_logits": output.logits, "pred_boxes": output.boxes}
    ours |= {"pred_points": output.points, "pred_objs": output.objectness}
    limits = {"pred_logits": 2e-4, "pred_objs": 2e-4, "pred_boxes": 2e-5, "pred_points": 2e-5}
    stored = [name for name in case.expected if name.startswith("layer") and not name.endswith("/hidden")]
    assert {name.split("/")[1] for name in stored} == {kind for kind, tensor in ours.items() if tensor is not None}
    for name in stored:
        layer, kind = name.removeprefix("layer").split("/")
        close(case.cut(name, ours[kind][int(layer)]), case.expected[name], limits[kind], name)


def test_memory(run, output):
    close(run.case.cut("memory", output.memory), run.case.expected["memory"], 1e-4, "memory")


def test_losses_and_gradient_norms(run):
    meta = run.case.meta
    losses, norms = run.losses_and_gradients()
    assert losses["total"] == pytest.approx(meta["expected_total"], rel=1e-4)
    compared = {name: our_loss(name, len(meta["expected_indices"])) for name in meta["expected_losses"]}
    assert {compared[name] for name in meta["loss_weights"]} <= set(losses)
    for official, ours in compared.items():
        if ours is not None:
            expected = meta["expected_losses"][official]
            assert losses[ours] == pytest.approx(expected, rel=1e-4, abs=1e-7), official
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
