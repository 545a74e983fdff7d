"""What only a GPU can show. The suite of benchmarks/gpu_suite.py runs these first."""

import copy

import pytest
import torch

import detrkit
from detrkit.engine.optimiser import clip_and_step
from detrkit.engine.recomputing import recompute
from detrkit.errors import UserError
from detrkit.layers import Arriving, constant, sent
from tests.engine.toys import Killed, ToyDetector, ToySource, kill_at, toy_trainer
from tests.small import SMALL

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


def test_a_forward_pass_of_detection_can_be_captured_in_a_graph():
    recipe = detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, "queries.grid=[3, 4]", "detector.classes=5"])
    form = detrkit.build_detector(recipe).cuda().for_inference()
    images = torch.randn(1, 3, 64, 96, device="cuda")
    side = torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(side):
            for _ in range(3):
                form(images)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = form(images).boxes
        images.copy_(torch.randn(1, 3, 64, 96))
        graph.replay()
        assert (captured - form(images).boxes).abs().max() <= 1e-4


def test_a_constant_does_not_wait():
    like = torch.zeros(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = constant([[1.0, 2.0], [3.0, 4.0]], like)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert made.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_values_arrive_without_a_wait_that_is_refused():
    there = torch.arange(5, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = Arriving(there).read()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_what_the_host_sends_arrives_whole_without_a_wait():
    for values in (torch.arange(100_000), torch.arange(6).view(3, 2)[:, 1], torch.zeros(0, 4)):
        torch.cuda.set_sync_debug_mode("error")
        try:
            there = sent(values, torch.device("cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert there.cpu().equal(values)


def test_a_step_without_memory_leaves_a_checkpoint_to_go_on_from(tmp_path):
    def hook(calls, criterion):
        if calls == 4:
            torch.empty(2**50, device="cuda")

    given = {"detector": ToyDetector().to("cuda"), "source": ToySource(empty=lambda index: False), "device": "cuda"}
    with pytest.raises(UserError, match=r"step 4 of 15 does not fit.*\n.*train\.micro_batch=2"):
        toy_trainer(tmp_path, hook=hook, **given).fit()
    on = toy_trainer(tmp_path, micro_batch=2, **given)
    on.resume()
    assert on.at.step == 3
    assert on.fit().finished


def test_layers_that_are_computed_again_draw_the_same_and_do_not_wait():
    values = [*SMALL, "queries.grid=[3, 4]", "detector.classes=5", "encoder.dropout=0.3", "decoder.dropout=0.3"]
    keeping = detrkit.build_detector(detrkit.load_recipe("sap_detr_r50_50ep", values)).cuda().train()
    again = copy.deepcopy(keeping)
    recompute(again, ["backbone", "encoder", "decoder"])
    images, grads = torch.randn(2, 3, 64, 96, device="cuda"), []
    for detector in (keeping, again, again):  # the second step of the last has nothing left to prepare
        torch.manual_seed(1)
        detector.zero_grad(set_to_none=True)
        torch.cuda.set_sync_debug_mode("error" if grads[1:] else "default")
        try:
            output = detector(images)
            (output.logits.square().mean() + output.boxes.square().mean()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        grads.append({name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None})
    for found in grads[1:]:
        assert found.keys() == grads[0].keys()
        for name, grad in grads[0].items():
            torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-4 * grad.abs().max().item() + 1e-7)


def test_an_update_that_is_not_finite_is_left_out():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimiser = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for factor in (1.0, float("nan"), 1.0):
        before = weight.detach().clone()
        (factor * weight).sum().backward()
        norm = clip_and_step(optimiser, 1.0)
        assert bool(norm.isfinite()) == bool((weight != before).all())
    assert optimiser.state[weight]["step"].item() == 2


def test_a_resumed_training_is_the_whole_one(tmp_path):
    def trainer(name, hook=None):
        return toy_trainer(
            tmp_path / name,
            hook=hook,
            detector=ToyDetector(dropout=0.3).to("cuda"),
            source=ToySource(empty=lambda index: False),
            device="cuda",
            ema_decay=0.9,
            checkpoint_steps=1,
        )

    whole = trainer("whole")
    assert whole.fit().finished
    with pytest.raises(Killed):
        trainer("cut", kill_at(8)).fit()
    resumed = trainer("cut")
    resumed.resume()
    assert resumed.at.step == 7
    assert resumed.fit().finished
    for one, other in zip(whole.detector.parameters(), resumed.detector.parameters(), strict=True):
        torch.testing.assert_close(one, other)
