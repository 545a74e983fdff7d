"""`train.compile`: graphs and recompilations as numbers, and the losses of eager training."""

import pytest
import torch
from torch import nn

import detrkit
from detrkit.attention.bilinear import read_bilinear
from detrkit.blocks.base import exact, rounded
from detrkit.engine.learner import compiled_form
from detrkit.errors import UserError
from tests.small import SMALL

GRID = "queries.grid=[2, 3]"
SYSTEMS = {
    "SAP": ["base/sap_detr", GRID, "decoder.layers=1"],
    "SAP + DN": ["base/sap_dn", GRID, "blocks.denoising.groups=2", "decoder.layers=1"],
    "SAP + DINO": ["base/sap_dino", GRID, "blocks.denoising.count=12"],
    "DINO, 4 levels": ["dino_4scale_r50_12ep", "queries.count=8", "blocks.denoising.count=12"],
}
WIDE, HIGH = (64, 96), (96, 64)


class Graphs:
    """A backend that runs graphs as they are, and counts them."""

    count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def build(system, dtype=torch.float32):
    torch.manual_seed(0)
    recipe = detrkit.load_recipe(SYSTEMS[system][0], [*SMALL, "detector.classes=5", *SYSTEMS[system][1:]])
    detector = detrkit.build_detector(recipe).to(dtype).train()
    for module in detector.modules():  # heads start at zero, which would hide what is unused
        if isinstance(module, nn.Linear) and (module.weight == 0).all():
            nn.init.normal_(module.weight, std=0.05)
    return detector, detrkit.build_criterion(recipe)


def batch(counts, size, dtype=torch.float32):
    draw = torch.Generator().manual_seed(sum(counts))
    images = torch.randn(len(counts), 3, *size, generator=draw, dtype=dtype)
    mask = torch.zeros(len(counts), *size, dtype=torch.bool)
    images[-1, :, :, 40:], mask[-1, :, 40:] = 0, True
    targets = [
        {"labels": torch.randint(0, 5, (n,), generator=draw), "boxes": torch.rand(n, 4, generator=draw) * 0.4 + 0.3}
        for n in counts
    ]
    return images, mask, targets


def losses(predict, criterion, images, mask, targets):
    torch.manual_seed(7)  # the noise
    return criterion(predict(images, mask, targets), targets)


@pytest.mark.slow  # dynamo reads every layer
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_training_step_is_one_graph_for_each_size(system):
    """Whatever the numbers of objects: two sizes of images, one recompilation."""
    detector, criterion = build(system)
    torch._dynamo.reset()
    graphs = Graphs()
    compiled = detector.compiled(backend=graphs)
    for size, number in ((WIDE, 1), (HIGH, 2)):
        for counts in ((3, 1), (2, 4), (0, 2), (0, 0), (6, 5)):
            values = batch(counts, size)
            found, expected = losses(compiled, criterion, *values), losses(detector, criterion, *values)
            assert graphs.count == number, f"{counts} objects in images of {size}"
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("system", ["SAP + DN", "SAP + DINO"])
@pytest.mark.parametrize("counts", [(3, 1), (0, 0)])
def test_slots_that_fill_up_change_nothing(system, counts):
    detector, criterion = build(system, torch.float64)
    images, mask, targets = batch(counts, WIDE, torch.float64)
    results = []
    for room in (exact, rounded, lambda slots: slots + 5):
        detector.zero_grad()
        torch.manual_seed(7)
        output = detector._forward(images, mask, targets, detector._predict, room)
        found = criterion(output, targets)
        found["total"].backward()
        results.append((found, {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}))
    for others in results[1:]:
        for expected, other in zip(results[0], others, strict=True):
            assert expected.keys() == other.keys()
            for name, value in expected.items():
                torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_places_are_read_by_one_kernel_in_a_graph():
    """The inductor's own form of it is slow on the CPU."""
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 5, 7, generator=draw, dtype=torch.float64).requires_grad_()
    places = (torch.rand(2, 4, 6, 2, generator=draw, dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    kept = []

    def backend(graph, inputs):
        kept.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    found, expected = (form(maps, places) for form in (torch.compile(read_bilinear, backend=backend), read_bilinear))
    assert any("detrkit.read_bilinear" in name for name in kept)
    assert torch.equal(found, expected)
    weights = torch.randn(2, 3, 4, 6, generator=draw, dtype=torch.float64)
    for gradient, same in zip(
        torch.autograd.grad((found * weights).sum(), (maps, places)),
        torch.autograd.grad((expected * weights).sum(), (maps, places)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, same, rtol=1e-12, atol=1e-12)
    torch.library.opcheck(torch.ops.detrkit.read_bilinear, (maps, places))


def test_slots_have_few_sizes():
    assert [rounded(n) for n in (0, 1, 32, 33, 200, 256, 257)] == [32, 32, 32, 64, 256, 256, 512]


def test_what_is_no_graph_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the compiler is not what is tried here
    small = ["backbone.name=test_resnet", "backbone.pretrained=false", "detector.classes=3"]
    faster = detrkit.build_detector(detrkit.load_recipe("faster_rcnn_r50_108ep", small))
    with pytest.raises(UserError, match=r"needs a detector that is one graph.*FasterRcnn"):
        compiled_form(faster, torch.device("cpu"))
    with pytest.raises(UserError, match=r"Linear has none"):
        compiled_form(nn.Linear(2, 2), torch.device("cpu"))

    def broken(function, **_):
        raise RuntimeError("no g++ here")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"torch.compile does not work here: RuntimeError: no g\+\+ here"):
        compiled_form(faster, torch.device("cpu"))
