"""Half precision: taken by "auto" where it was measured to be faster, and by nobody where there is none."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from detrkit.backbones.timm_backbone import TimmBackbone
from detrkit.errors import UserError
from detrkit.evaluation import precision
from detrkit.evaluation.evaluate import autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(("there", "gain", "chosen"), [(True, 3.0, "bf16"), (True, 1.0, "fp32"), (False, 3.0, "fp32")])
def test_auto_wants_both_the_instructions_and_the_gain(monkeypatch, there, gain, chosen):
    monkeypatch.setattr(precision, "has_bf16", lambda device: there)
    monkeypatch.setattr(precision, "bf16_gain", lambda: gain)
    assert precision.choose_precision("auto", CPU) == chosen
    assert precision.choose_precision("fp32", CPU) == "fp32"
    with pytest.raises(UserError, match="precision is 'half'; accepted are auto, fp32, bf16 and fp16"):
        precision.choose_precision("half", CPU)
    said = precision.describe_precision("auto", CPU)
    assert said.startswith(chosen)
    assert (f"{gain:.1f} times as fast" in said) == there
    if there:
        assert precision.choose_precision("bf16", CPU) == precision.describe_precision("bf16", CPU) == "bf16"
        with autocast(CPU, "bf16"):
            assert F.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    else:
        with pytest.raises(UserError, match=r"AVX512_BF16 or AMX, and cpu here is none"):
            precision.choose_precision("bf16", CPU)


@pytest.mark.parametrize(("major", "chosen"), [(7, "fp32"), (8, "bf16")])
def test_a_gpu_that_emulates_bfloat16_has_none(monkeypatch, major, chosen):
    """Those of before Ampere (8.0), such as a T4, take tensors of it and compute slower than in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert precision.choose_precision("auto", torch.device("cuda", 0)) == chosen
    assert ("no bf16; train.precision=fp16" in precision.describe_precision("auto", torch.device("cuda", 0))) == (
        chosen == "fp32"
    )


def test_float16_is_a_gpu_s():
    """On a CPU PyTorch has it, and takes more than ten times as long for a step."""
    assert precision.choose_precision("fp16", torch.device("cuda", 0)) == "fp16"
    with pytest.raises(UserError, match=r"precision is 'fp16', which needs a GPU, and cpu here is none; use 'auto'"):
        precision.choose_precision("fp16", CPU)


def test_what_is_measured_decides_whatever_the_processor_says():
    if os.environ["ONEDNN_MAX_CPU_ISA"] != "AVX512_CORE" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("needs a processor whose bfloat16 instructions these tests turn off")
    assert precision.bf16_gain() < precision.WORTHWHILE
    assert precision.choose_precision("auto", CPU) == "fp32"


def test_norms_are_folded_before_weights_are_rounded():
    torch.manual_seed(0)
    backbone = TimmBackbone(name="test_resnet", pretrained=False)
    convolution, norm = backbone.body.conv1[:2]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    weight = convolution.weight.detach() * scale[:, None, None, None]
    images = torch.randn(2, 3, 32, 32)
    expected = F.conv2d(images.double(), weight, norm.bias - norm.running_mean * scale, (2, 2), (1, 1))
    backbone.prepare_for_detection()
    folded = backbone.body.get_submodule("conv1.0")
    assert torch.allclose(folded.weight.double(), weight, rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        found = folded(images)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), expected.relu(), rtol=2e-2, atol=2e-2)
