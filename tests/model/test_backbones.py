"""Any timm backbone by one override: convolutional, and transformers whose patches want whole steps."""

import pytest
import torch

import detrkit
from detrkit.backbones.timm_backbone import pad_to_multiple
from detrkit.errors import CheckpointError

SMALL = [
    "backbone.pretrained=false",
    "encoder.layers=1",
    "decoder.layers=1",
    "detector.classes=4",
    "queries.grid=[3,4]",
]


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet18", 32), ("convnext_atto", 32), ("swin_tiny_patch4_window7_224", 32), ("vit_tiny_patch16_224", 16)],
)
def test_a_backbone_by_its_name(name, stride):
    detector = detrkit.build_detector(detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, f"backbone.name={name}"]))
    height, width = 130, 165  # whole multiples of nothing
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, :, 140:] = True
    output = detector(torch.randn(2, 3, height, width), mask)
    assert detector.backbone.strides == (stride,)
    round_up = name != "convnext_atto"  # its patches leave out what does not fill one
    cells = [size // stride + (round_up and size % stride > 0) for size in (height, width)]
    assert output.memory.shape[1] == cells[0] * cells[1]
    output.logits.sum().backward()
    trained = [p for p in detector.backbone.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_padding_to_whole_steps_is_masked():
    images, mask = pad_to_multiple(torch.ones(1, 3, 5, 8), None, 4)
    assert images.shape == (1, 3, 8, 8)
    assert mask[0, :5].sum() == 0
    assert mask[0, 5:].all()
    assert (images[0, :, 5:] == 0).all()
    images, mask = pad_to_multiple(torch.ones(1, 3, 8, 8), None, 4)
    assert mask is None  # nothing was padded, so attention stays without a mask


def test_weights_that_are_loaded_anyway_are_neither_fetched_nor_read(tmp_path):
    """A run that began from a file of backbone weights is opened where that file is not."""
    gone = f"backbone.weights={tmp_path / 'gone.safetensors'}"
    recipe = detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, gone, "backbone.pretrained=true"])
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        detrkit.build_detector(recipe)
    detrkit.build_detector(recipe, pretrained=False)
