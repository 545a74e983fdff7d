"""ResNet-vd of 18 and 34 layers as PaddlePaddle and RT-DETR build it, as timm models `resnet18vd` and `resnet34vd`.

They are timm's `resnet18d` and `resnet34d` with one more thing: the first block's shortcut, which keeps both size and
channels, is a 1 x 1 convolution and a batch norm all the same. With bottlenecks the first block changes channels, so
there is no difference: `resnet50d` and `resnet101d` are ResNet-vd.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet, downsample_avg

UNTRAINED = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv1.0",
    "classifier": "fc",
}
default_cfgs = generate_default_cfgs({"resnet18vd": UNTRAINED, "resnet34vd": UNTRAINED})  # timm looks for this name


class ResNetVd(ResNet):
    """timm's ResNet with a projected shortcut in the first block."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        first: Any = self.get_submodule("layer1.0")
        first.downsample = downsample_avg(64, 64, kernel_size=1, stride=1)


def _resnet_vd(name: str, layers: tuple[int, ...], **options: Any) -> Any:
    layout: dict[str, Any] = {"block": BasicBlock, "stem_width": 32, "stem_type": "deep", "avg_down": True}
    return build_model_with_cfg(ResNetVd, name, layers=layers, **layout, **options)


@register_model
def resnet18vd(pretrained: bool = False, **options: Any) -> Any:
    """ResNet18-vd; there are no weights to be fetched."""
    return _resnet_vd("resnet18vd", (2, 2, 2, 2), pretrained=pretrained, **options)


@register_model
def resnet34vd(pretrained: bool = False, **options: Any) -> Any:
    """ResNet34-vd; there are no weights to be fetched."""
    return _resnet_vd("resnet34vd", (3, 4, 6, 3), pretrained=pretrained, **options)
