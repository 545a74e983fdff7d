"""Any timm model as a backbone."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from detrkit.backbones.base import Backbone
from detrkit.errors import CheckpointError, UserError
from detrkit.layers import constant, shrink_mask
from detrkit.recipe import register
from detrkit.structures import FeatureMap


@register("backbone", "timm")
class TimmBackbone(Backbone):
    """Feature maps of a timm model built with `features_only`; transformers (Swin, ViT) take images of any size too.

    Args:
        name: a timm model name; `timm.list_models()` lists them.
        pretrained: load timm's ImageNet weights (downloaded once by timm).
        weights: a local weights file of that timm model instead (.safetensors or .pth).
        levels: which of the model's feature levels to return; -1 is the last, C5 of a ResNet.
        dilated: replace the stride of the last stage by dilation, DETR's DC5: half the stride, four times the tokens.
        norm: "frozen" keeps every batch norm's statistics and affine values as they were loaded, as DETR does
            (right for pretrained weights and small batches); "batch" trains them (right from scratch).
        frozen_stride: layers that make features of up to this stride are not trained; 4 freezes a ResNet's stem
            and first stage, as DETR does; 0 trains everything.
    """

    def __init__(
        self,
        *,
        name: str = "resnet50",
        pretrained: bool = True,
        weights: str | None = None,
        levels: Annotated[list[int], Field(min_length=1)] = [-1],  # noqa: B006 (never changed)
        dilated: bool = False,
        norm: Literal["frozen", "batch"] = "frozen",
        frozen_stride: Annotated[int, Field(ge=0)] = 4,
    ):
        super().__init__()
        try:
            any_size = _any_size(name)
            available = _features(name, pretrained=False, **any_size).feature_info
        except RuntimeError as error:
            raise UserError(f"backbone.name = {name!r}: {error}; `timm.list_models()` lists the names") from None
        count = len(available)
        if bad := [level for level in levels if not -count <= level < count]:
            raise UserError(f"backbone.levels = {bad}: {name} has {count} levels, 0 to {count - 1} or negative")
        options = {"output_stride": available.reduction()[-1] // 2} if dilated else {}
        indices = sorted({level % count for level in levels})
        local = {"pretrained_cfg_overlay": {"file": weights}} if weights else {}
        try:
            body = _features(
                name,
                out_indices=indices,
                pretrained=pretrained or bool(weights),
                **any_size,
                **options,
                **local,
            )
        except Exception as error:
            if not (pretrained or weights):
                raise
            raise CheckpointError(_no_weights(name, weights, error)) from error
        if norm == "frozen":
            body = freeze_batch_norm_2d(body)
        self.body: nn.Module = body
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(body.feature_info.reduction())
        self.channels_last = getattr(body, "output_fmt", None) == "NHWC"
        self.multiple = max(available.reduction()) if any_size else 1  # patches and their merging want whole steps
        self._freeze([f["module"] for f in body.feature_info.info if f["reduction"] <= frozen_stride])
        self.body.to(memory_format=torch.channels_last)  # a third less time for convolutions on a CPU, less on CUDA too

    def _freeze(self, frozen: list[str]) -> None:
        """Stop the training of every layer up to the last of these modules."""
        if not frozen:
            return
        for child, module in self.body.named_children():
            module.requires_grad_(False)
            if frozen[-1].replace(".", "_") == child or frozen[-1].split(".")[0] == child:
                return

    def forward(self, images: Tensor, mask: Tensor | None) -> list[FeatureMap]:
        """Images [B, 3, H, W] and padding mask [B, H, W] to one FeatureMap a level, fine to coarse."""
        sizes = image_sizes(images, mask)
        images, mask = pad_to_multiple(images, mask, self.multiple)
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [
            FeatureMap(m, shrink_mask(mask, m.shape[-2:]), mask, sizes / stride)
            for m, stride in zip(maps, self.strides, strict=True)
        ]


def _features(name: str, **options: Any) -> Any:
    """A timm model that gives feature maps, and says in `feature_info` what they are."""
    return timm.create_model(name, features_only=True, **options)


def _any_size(name: str) -> dict[str, bool]:
    """The options that let a timm transformer take images of any size; none for what takes them anyway."""
    with torch.device("meta"):
        known = inspect.signature(type(timm.create_model(name, pretrained=False)).__init__).parameters
    wanted = {"strict_img_size": False, "dynamic_img_size": True}
    return {key: value for key, value in wanted.items() if key in known}


def pad_to_multiple(images: Tensor, mask: Tensor | None, multiple: int) -> tuple[Tensor, Tensor | None]:
    """Images [B, 3, H, W] and mask [B, H, W] padded at the right and bottom to whole multiples, masked there."""
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if not (below or right):
        return images, mask
    if mask is None:
        mask = torch.zeros(len(images), height, width, dtype=torch.bool, device=images.device)
    return F.pad(images, (0, right, 0, below)), F.pad(mask, (0, right, 0, below), value=True)


def image_sizes(images: Tensor, mask: Tensor | None) -> Tensor:
    """[B, 2] float32 (width, height) in pixels of each image without its padding."""
    if mask is None:
        return constant(images.shape[:1:-1], images, torch.float32).expand(len(images), 2)
    return torch.stack(((~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)), dim=-1).float()


def _no_weights(name: str, weights: str | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    if weights:
        return f"backbone.weights = {weights!r} could not be loaded into {name}: {reason}"
    return (
        f"the pretrained weights of {name} could not be loaded: {reason}\n"
        "Without a network: download them on another machine and set backbone.weights=FILE, "
        "or train from scratch with backbone.pretrained=false backbone.norm=batch backbone.frozen_stride=0"
    )
