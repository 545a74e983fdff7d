"""Any timm model as a backbone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from detrkit.backbones.base import Backbone
from detrkit.backbones.folding import fold, fold_for_good, fold_frozen_norms, foldable
from detrkit.backbones.needs import dilated_layout, features, frozen_names, needs_of
from detrkit.backbones.weights import read_weights, require_all
from detrkit.errors import CheckpointError, UserError
from detrkit.layers import constant, shrink_mask
from detrkit.one_pass import in_one_pass
from detrkit.onednn import use_onednn
from detrkit.pixels import MEAN, STD
from detrkit.recipe import register
from detrkit.structures import FeatureMap

Deviation = Annotated[float, Field(gt=0)]


@register("backbone", "timm")
class TimmBackbone(Backbone):
    """Feature maps of a timm model built with `features_only`; transformers (Swin, ViT) take images of any size too.

    Args:
        name: a timm model name; `timm.list_models()` lists them, `resnet18vd` and `resnet34vd` among them, which are
            RT-DETR's form of `resnet18d` and `resnet34d` and come without weights.
        pretrained: load timm's ImageNet weights (downloaded once by timm).
        weights: a local weights file of that timm model instead (.safetensors or .pth), which has to fill all of it;
            what stands before its names is taken off and said.
        levels: which of the model's feature levels to return; -1 is the last, C5 of a ResNet.
        dilated: replace the stride of the last stage by dilation, DETR's DC5: half the stride, four times the tokens.
        norm: "frozen" keeps every batch norm's statistics and affine values as they were loaded, as DETR does
            (right for pretrained weights and small batches), and computes those after a convolution as a scale of its
            weights; "batch" trains them (right from scratch), "sync" with
            statistics over the batches of all processes, which wants GPUs.
        frozen_stride: layers that make features of up to this stride are not trained; 4 freezes a ResNet's stem
            and first stage, as DETR does; 0 trains everything. (A HRNet makes its finest features last, of nearly all.)
        mean: of RGB in [0, 1], that the weights were trained with; "none": what timm says of the model.
        std: the deviation likewise. Images still come in with ImageNet's, and are turned into these here.
    """

    def __init__(
        self,
        *,
        name: str = "resnet50",
        pretrained: bool = True,
        weights: str | None = None,
        levels: Annotated[list[int], Field(min_length=1)] = [-1],  # noqa: B006 (never changed)
        dilated: bool = False,
        norm: Literal["frozen", "batch", "sync"] = "frozen",
        frozen_stride: Annotated[int, Field(ge=0)] = 4,
        mean: tuple[float, float, float] | None = None,
        std: tuple[Deviation, Deviation, Deviation] | None = None,
    ):
        super().__init__()
        needs = needs_of(name)
        count = len(needs.strides)
        if bad := [level for level in levels if not -count <= level < count]:
            raise UserError(f"backbone.levels = {bad}: {name} has {count} levels, 0 to {count - 1} or negative")
        layout: dict[str, Any] = dilated_layout(name) if dilated else {}
        indices = tuple(needs.indices[level] for level in sorted({level % count for level in levels}))
        state = read_weights(weights, needs.names) if weights else None
        # timm renames tensors of older and of official files, and says on the console what it did not want.
        local = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": dict(state), "custom_load": False}}
        try:
            with quiet_timm():
                body = features(
                    name,
                    out_indices=indices,
                    pretrained=pretrained or state is not None,
                    **needs.options,
                    **layout,
                    **local,
                )
        except Exception as error:
            if not (pretrained or weights):
                raise
            raise CheckpointError(_no_weights(name, weights, error)) from error
        if state is not None:
            require_all(body, state, str(weights), name)
        use_onednn(body)
        if norm == "frozen":
            body = freeze_batch_norm_2d(body)
            fold(body, _foldable(name, indices, **layout))
        if norm == "sync":
            body = convert_sync_batchnorm(body)
        self.syncs = norm == "sync"
        self.body: nn.Module = body
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(body.feature_info.reduction())
        self.channels_last = getattr(body, "output_fmt", None) == "NHWC"
        self.multiple = needs.multiple
        self.mean, self.std = mean or needs.mean, std or needs.std
        self._set_pixels(self.mean, self.std)
        frozen = frozen_names(name, frozen_stride, **layout)
        for key, parameter in body.named_parameters():
            parameter.requires_grad_(key not in frozen)
        self.body.to(memory_format=torch.channels_last)  # a third less time for convolutions on a CPU, less on CUDA too

    def _set_pixels(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """What turns images with ImageNet's mean and deviation into the model's own, where these differ."""
        factor = [ours / its for ours, its in zip(STD, std, strict=True)]
        shift = [(ours - its) / its_std for ours, its, its_std in zip(MEAN, mean, std, strict=True)]
        self.factor: Tensor | None
        self.shift: Tensor | None
        same = tuple(mean) == MEAN and tuple(std) == STD
        for key, values in (("factor", factor), ("shift", shift)):
            tensor = None if same else torch.tensor(values)[:, None, None]
            self.register_buffer(key, tensor, persistent=False)

    def _as_trained(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """The images with the mean and deviation that the model was trained with; padding stays zero."""
        if self.factor is None or self.shift is None:
            return images
        images = images * self.factor.to(images.dtype) + self.shift.to(images.dtype)
        return images if mask is None else images.masked_fill(mask[:, None], 0)

    def forward(self, images: Tensor, mask: Tensor | None) -> list[FeatureMap]:
        """Images [B, 3, H, W] and padding mask [B, H, W] to one FeatureMap a level, fine to coarse."""
        if self.syncs and self.training and images.device.type == "cpu" and many_processes():
            raise UserError('backbone.norm = "sync" joins the batches of processes on GPUs; on CPUs take "frozen"')
        sizes = image_sizes(images, mask)
        images = self._as_trained(images, mask)
        images, mask = pad_to_multiple(images, mask, self.multiple)
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [
            FeatureMap(m, shrink_mask(mask, m.shape[-2:]), mask, sizes / stride)
            for m, stride in zip(maps, self.strides, strict=True)
        ]

    def prepare_for_detection(self) -> None:
        """Puts norms, shortcuts and activations into the convolutions before them; other norms keep their numbers."""
        self.body = freeze_batch_norm_2d(self.body)
        fold_frozen_norms(self.body, self.multiple)
        fold_for_good(self.body)
        self.body = in_one_pass(self.body.eval())


def many_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@cache  # one trial for all models of a kind in a process
def _foldable(name: str, indices: tuple[int, ...], **layout: Any) -> list[tuple[str, str]]:
    """What `fold` takes of a timm model with feature maps of these levels: names of convolutions and frozen norms."""
    needs = needs_of(name)
    with torch.device("meta"):
        body = features(name, pretrained=False, out_indices=indices, **needs.options, **layout)
        return foldable(freeze_batch_norm_2d(body), needs.multiple)


@contextmanager
def quiet_timm() -> Iterator[None]:
    """Without timm's warning of unexpected keys: a classifier's weights are no fault of a backbone."""
    log = logging.getLogger("timm.models._builder")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def pad_to_multiple(images: Tensor, mask: Tensor | None, multiple: int) -> tuple[Tensor, Tensor | None]:
    """Images [B, 3, H, W] and mask [B, H, W] padded at the right and bottom to whole multiples, masked there."""
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    # An exported graph, which serves all sizes, pads whatever the size.
    if multiple == 1 or not (torch.compiler.is_exporting() or below or right):
        return images, mask
    if mask is None:
        mask = torch.zeros(images.shape[0], height, width, dtype=torch.bool, device=images.device)
    return F.pad(images, (0, right, 0, below)), F.pad(mask, (0, right, 0, below), value=True)


def image_sizes(images: Tensor, mask: Tensor | None) -> Tensor:
    """[B, 2] float32 (width, height) in pixels of each image without its padding."""
    if mask is None:
        return constant(images.shape[:1:-1], images, torch.float32).expand(images.shape[0], 2)
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
