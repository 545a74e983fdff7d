"""Official checkpoints of every SAP-DETR and DAB-DETR backbone, and their recipes at full size for one small step."""

import pytest
import torch
import torchvision

import detrkit
from tests.parity import GOLDEN, golden

VARIANTS = [
    (f"{family}_{backbone}_50ep", family)
    for family in ("sap_detr", "dab_detr")
    for backbone in ("r101", "dc5_r50", "dc5_r101")
]


def official(name: str, family: str) -> dict[str, torch.Tensor]:
    """What the official code would have saved: the neck of the ResNet-50 case over torchvision's backbone."""
    neck = golden.load(GOLDEN / f"{family}_r50").weights()
    with torch.device("meta"):
        body = (torchvision.models.resnet101 if "r101" in name else torchvision.models.resnet50)().state_dict()
    body = {k: v for k, v in body.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    rest = {k: v for k, v in neck.items() if not k.startswith("backbone.")}
    return rest | {f"backbone.0.body.{name}": drawn(tensor.shape) for name, tensor in body.items()}


def drawn(shape: torch.Size) -> torch.Tensor:
    """Matrices that keep the size of what goes through; ones for norms."""
    return torch.randn(shape) / shape[1:].numel() ** 0.5 if len(shape) > 1 else torch.ones(shape)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), VARIANTS)
def test_a_variant_converts_and_trains_a_step(name, family):
    weights = official(name, family)
    count = len(weights["refpoint_embed.weight"])
    queries = "queries.grid=[17,18]" if family == "sap_detr" else f"queries.count={count}"
    recipe = detrkit.load_recipe(name, ["backbone.pretrained=false", queries])
    detector = detrkit.build_detector(recipe)
    detector.load_state_dict(detrkit.zoo.convert(weights, recipe))
    assert torch.equal(detector.backbone.body.conv1.weight, weights["backbone.0.body.conv1.weight"])
    targets = [{"labels": torch.tensor([1, 17]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.1]])}]
    output = detector.train()(torch.randn(1, 3, 96, 128), None, targets)
    stride = 16 if "dc5" in name else 32
    assert output.memory.shape[1] == 96 * 128 // stride**2
    losses = detrkit.build_criterion(recipe)(output, targets)
    losses["total"].backward()
    assert losses["total"].isfinite()
    last = [p for p in detector.backbone.parameters() if p.requires_grad][-1]
    assert last.grad.abs().sum() > 0


def test_a_checkpoint_of_another_backbone_is_refused_by_name():
    recipe = detrkit.load_recipe("sap_detr_r101_50ep", ["backbone.pretrained=false"])
    with pytest.raises(detrkit.errors.CheckpointError, match=r"backbone\.body\.layer3\.22\.conv1\.weight|missing"):
        detrkit.zoo.convert(official("sap_detr_r50_50ep", "sap_detr"), recipe)
