"""What only a GPU can show. The suite of benchmarks/gpu_suite.py runs these first."""

import pytest
import torch

import detrkit
from detrkit.layers import constant
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
