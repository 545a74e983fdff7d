"""A detector's form for inference finds what the detector does, in every system."""

import pytest
import torch

import detrkit
from detrkit.backbones.folding import FoldedConv2d
from detrkit.detector import Detector
from detrkit.structures import Output
from tests.small import SMALL

SYSTEMS = [
    "detr_r50_500ep",
    "detr_dc5_r50_500ep",
    "conditional_detr_r50_50ep",
    "smca_detr_r50_50ep",
    "anchor_detr_r50_50ep",
    "sam_detr_r50_50ep",
    "sam_detr_smca_r50_50ep",
    "dab_detr_r50_50ep",
    "deformable_detr_4scale_refined_r50_50ep",
    "deformable_detr_4scale_two_stage_r50_50ep",
    "dn_detr_r50_12ep",
    "dino_4scale_r50_12ep",
    "group_detr_r50_12ep",
    "sap_detr_r50_50ep",
    "sap_detr_plus_r50_50ep",
    "sap_dino_r50_12ep",
    "faster_rcnn_r50_108ep",
]


def trained(name, *overrides):
    """A small detector in float64 with weights and statistics that are not those of a start."""
    torch.manual_seed(0)
    own = ["detector.region_width=32", "detector.width=32"] if name.startswith("faster") else SMALL[2:]
    recipe = detrkit.load_recipe(name, [*SMALL[:2], *own, "detector.classes=5", *overrides])
    detector = detrkit.build_detector(recipe)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for key, buffer in detector.backbone.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            if key.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return detector.double().eval()


def batch():
    images = torch.randn(2, 3, 97, 130, dtype=torch.float64)
    mask = torch.zeros(2, 97, 130, dtype=torch.bool)
    mask[1, 80:] = True
    return images.masked_fill(mask[:, None], 0), mask, torch.tensor([[97, 130], [160, 260]])


@pytest.mark.parametrize(("name", "norm"), [*((name, "frozen") for name in SYSTEMS), ("sap_detr_r50_50ep", "batch")])
def test_the_detections_are_the_same(name, norm):
    detector = trained(name, f"backbone.norm={norm}")
    form = detector.for_inference()
    images = batch()
    expected, found = detector.detect(*images), form.detect(*images)
    assert any(len(one["scores"]) for one in expected)
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for column, values in a.items():
            assert torch.allclose(b[column].double(), values.double(), rtol=1e-5, atol=1e-5), column
    if isinstance(detector, Detector):
        whole, last = detector(*images[:2]), form(*images[:2])
        assert isinstance(last, Output)
        assert len(whole.logits) > len(last.logits) == len(last.boxes) == 1
        assert torch.allclose(last.logits[0], whole.logits[-1], atol=1e-5)


def test_content_that_moves_references_may_be_normed():
    detector = trained("sap_detr_r50_50ep", "decoder.moved_by=normed", "decoder.layers=3")
    images = batch()
    expected, found = detector(*images[:2]), detector.for_inference()(*images[:2])
    assert torch.allclose(found.boxes[0], expected.boxes[-1], atol=1e-9)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_the_detector_itself_stays_and_goes_on_training(norm):
    detector = trained("dab_detr_r50_50ep", f"backbone.norm={norm}", "backbone.frozen_stride=0").train()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    classes = [type(module) for module in detector.modules()]
    form = detector.for_inference()
    assert detector.training
    assert not form.training
    assert [type(module) for module in detector.modules()] == classes
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert all(parameter.requires_grad for parameter in detector.backbone.parameters())
    assert not any(parameter.requires_grad for parameter in form.parameters())
    assert not any(isinstance(module, FoldedConv2d) for module in form.modules())
    detector(batch()[0]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in detector.backbone.parameters())


def test_weights_that_did_not_change_take_no_second_memory():
    detector = trained("dab_detr_r50_50ep")
    form = detector.for_inference()
    own, theirs = (dict(d.named_parameters()) for d in (detector, form))
    apart = [key for key, parameter in own.items() if theirs[key].data_ptr() != parameter.data_ptr()]
    assert apart
    assert all(key.startswith("backbone.") for key in apart)
    form.float()  # and going elsewhere takes nothing along
    assert all(parameter.dtype == torch.float64 for parameter in detector.parameters())
