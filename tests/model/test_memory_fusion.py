"""Memory fusion against Stable-DINO's encoder.

`memory_fusion.safetensors` holds an encoder of two layers on two levels, its weights, what it makes of tokens of two
images of which one is padded, and the gradients of the output's squared sum. Its metadata names the code.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from detrkit.encoders.deformable import DeformableEncoder
from detrkit.position import SinePosition
from detrkit.structures import Memory

STORED = load_file(Path(__file__).parent / "memory_fusion.safetensors")
NAMES = (
    (r"layers\.(\d+)\.attentions\.0\.value_proj", r"layers.\1.self_attention.value"),
    (r"layers\.(\d+)\.attentions\.0\.output_proj", r"layers.\1.self_attention.out"),
    (r"layers\.(\d+)\.attentions\.0", r"layers.\1.self_attention"),
    (r"layers\.(\d+)\.ffns\.0\.layers\.0\.0", r"layers.\1.feedforward.linear1"),
    (r"layers\.(\d+)\.ffns\.0\.layers\.1", r"layers.\1.feedforward.linear2"),
    (r"layers\.(\d+)\.norms\.0", r"layers.\1.norm1"),
    (r"layers\.(\d+)\.norms\.1", r"layers.\1.norm2"),
    (r"fusion_layer\.0", "fusion.project"),
    (r"fusion_layer\.1", "fusion.norm"),
)


def ours(name: str) -> str:
    for pattern, replacement in NAMES:
        name, found = re.subn(pattern, replacement, name)
        if found:
            return name
    raise KeyError(name)


class Given(nn.Module):
    """The projected maps, as the case has them."""

    def forward(self, features):
        return features


def test_the_memory_is_stable_dino_s():
    encoder = DeformableEncoder(
        channels=(8, 8),
        width=16,
        heads=2,
        position=SinePosition(width=16),
        layers=2,
        feedforward=24,
        memory_fusion=True,
    )
    encoder.inputs = Given()
    weights = {ours(name[2:]): value for name, value in STORED.items() if name.startswith("w.")}
    encoder.load_state_dict(weights)
    masks = [STORED[f"mask{level}"] for level in range(2)]
    tokens = STORED["x"].clone().requires_grad_()
    memory = Memory(tokens, STORED["position"], ((4, 5), (2, 3)), torch.cat([m.flatten(1) for m in masks], dim=1))
    output = encoder(memory).tokens
    assert (output - STORED["y"]).abs().max() < 1e-5
    output.square().sum().backward()
    assert (tokens.grad - STORED["x.grad"]).abs().max() < 1e-3 * STORED["x.grad"].abs().max()
    for name in ("project.weight", "project.bias", "norm.weight", "norm.bias"):
        official = STORED["g.fusion_layer." + name.replace("project", "0").replace("norm", "1")]
        assert (encoder.fusion.get_parameter(name).grad - official).abs().max() < 1e-4 * official.abs().max()


def test_without_layers_the_maps_alone_are_fused():
    encoder = DeformableEncoder(
        channels=(8,), width=16, heads=2, position=SinePosition(width=16), layers=0, memory_fusion=True
    )
    encoder.inputs = Given()
    memory = Memory(torch.randn(1, 6, 16), torch.zeros(1, 6, 16), ((2, 3),), None)
    expected = encoder.fusion.norm(encoder.fusion.project(memory.tokens))
    assert torch.equal(encoder(memory).tokens, expected)
