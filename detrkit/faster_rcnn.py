"""Faster R-CNN with a feature pyramid (Ren et al. 2015, Lin et al. 2017), put together from torchvision's modules.

It is no DETR: it shares the backbones, the data, the trainer and the evaluation, and none of the one loop.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, generalized_box_iou_loss
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detrkit.backbones.base import Backbone
from detrkit.backbones.timm_backbone import image_sizes, pad_to_multiple
from detrkit.errors import UserError
from detrkit.layers import Count, at_least_float32
from detrkit.losses.base import OwnLosses
from detrkit.losses.truths import check_truths
from detrkit.recipe import Recipe, register
from detrkit.structures import Sizes, Target
from detrkit.system import BaseDetector, CheckpointNames, System, check_sizes
from detrkit.torchvision_form import absolute

POOL = 7  # cells of a region along each side
STRIDE = 32  # images are padded to whole cells of C5, as torchvision does

Share = Annotated[float, Field(ge=0, le=1)]


@register("detector", "faster_rcnn")
@dataclass(frozen=True, kw_only=True)
class FasterRcnnOptions(System):
    """Faster R-CNN (Ren et al., NeurIPS 2015) on a feature pyramid (Lin et al., CVPR 2017); the defaults are
    torchvision's.
    """

    sections: ClassVar[tuple[str, ...]] = ("backbone",)

    classes: Count | None = None
    """K; taken from the data set when it is not given"""
    checkpoint_names: CheckpointNames = "torchvision"  # type: ignore[assignment]
    """whose official parameter names `detrkit convert` reads"""
    width: Count = 256
    """channels of the pyramid"""
    region_width: Count = 1024
    """channels of the two layers that look at a region"""
    anchor_sizes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (32, 64, 128, 256, 512)
    """side of the square anchor in pixels of the input: one for each level of the backbone, one for the level above"""
    aspect_ratios: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """height over width of each level's anchors"""
    train_proposals: Count = 2000
    """proposals of a level before suppression, and of an image after it, in training"""
    proposals: Count = 1000
    """the same otherwise"""
    train_regions: Count = 512
    """proposals of an image that the second stage is trained on"""
    positive_share: Share = 0.25
    """how many of those at most may be objects"""
    giou_weight: Annotated[float, Field(ge=0)] = 0.0
    """weight of a generalised IoU loss of the second stage's boxes, beside smooth L1"""
    min_score: Share = 0.05
    """detections below it are left out before suppression"""
    max_overlap: Share = 0.5
    """IoU from which on the lower of two detections of a class is left out"""
    keep: Count = 100
    """detections of an image"""

    def build_detector(self, recipe: Recipe, classes: int) -> FasterRcnn:
        """The detector, on the recipe's backbone.

        Raises:
            UserError: there is not one anchor size for each level.
        """
        backbone = recipe.section("backbone")()
        levels = len(backbone.channels) + 1
        if len(self.anchor_sizes) != levels:
            raise UserError(
                f"detector.anchor_sizes has {len(self.anchor_sizes)} sizes, and there are {levels} levels: "
                f"{levels - 1} of the backbone (backbone.levels) and one above"
            )
        return FasterRcnn(backbone=backbone, classes=classes, options=self)

    def build_criterion(self, recipe: Recipe) -> OwnLosses:
        """The sum of what the detector computes itself."""
        return OwnLosses()


class FasterRcnn(BaseDetector):
    """Images to detections: backbone, feature pyramid, region proposals, region heads.

    In training mode it gives losses, which torchvision's modules compute on the way, since they sample proposals by
    the truth; in evaluation mode detections.
    """

    no_export = (
        "torchvision's modules of Faster R-CNN read the images' sizes as numbers and choose boxes image by image, "
        "so that a graph of theirs holds for one batch and size"
    )

    def __init__(self, *, backbone: Backbone, classes: int, options: FasterRcnnOptions):
        super().__init__()
        o = options
        self.backbone, self.classes = backbone, classes
        channels = backbone.channels
        self.pyramid = FeaturePyramidNetwork(list(channels), o.width, LastLevelMaxPool())
        levels = len(channels)
        anchors = AnchorGenerator([(size,) for size in o.anchor_sizes], [tuple(o.aspect_ratios)] * (levels + 1))
        self.proposals = RegionProposalNetwork(
            anchors,
            ProposalHead(o.width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": o.train_proposals, "testing": o.proposals},
            post_nms_top_n={"training": o.train_proposals, "testing": o.proposals},
            nms_thresh=0.7,
        )
        self.regions = RegionHeads(
            MultiScaleRoIAlign([str(level) for level in range(levels)], output_size=POOL, sampling_ratio=2),
            TwoMLPHead(o.width * POOL**2, o.region_width),
            RegionPredictor(o.region_width, classes + 1),  # class 0 of the predictor is the background
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=o.train_regions,
            positive_fraction=o.positive_share,
            bbox_reg_weights=None,
            score_thresh=o.min_score,
            nms_thresh=o.max_overlap,
            detections_per_img=o.keep,
            giou_weight=o.giou_weight,
        )

    def forward(
        self, images: Tensor, mask: Tensor | None = None, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, each a mean over the images, by name; otherwise detections.

        Args:
            images: [B, 3, H, W], normalised, padded at the right and bottom with zeros.
            mask: [B, H, W] bool, True where padded; None when nothing is padded.
            targets: the truth, which training needs.

        Returns:
            for each image, out of training, `scores` [k], `labels` [k] and `boxes` [k, 4] as (x0, y0, x1, y1) in
            pixels of the input, within the image.

        Raises:
            UserError: no truth in training, or truths in another form or out of range; see `check_truths`.
        """
        if self.training and targets is None:
            raise UserError("Faster R-CNN computes its losses itself: in training mode it needs the targets")
        self.check_input(images, mask)
        sizes = image_sizes(images, mask)
        images, mask = pad_to_multiple(images, mask, STRIDE)
        levels = self.pyramid(OrderedDict((str(i), f.values) for i, f in enumerate(self.backbone(images, mask))))
        # Anchors take the type of the maps.
        levels = OrderedDict((name, at_least_float32(level)) for name, level in levels.items())
        shapes = [(int(height), int(width)) for width, height in sizes.tolist()]
        truths = None
        if self.training and targets is not None:
            check_truths(targets, images=len(images), classes=self.classes)
            truths = [absolute(target, size) for target, size in zip(targets, sizes, strict=True)]
        proposals, first = self.proposals(ImageList(images, shapes), levels, truths)
        found, second = self.regions(levels, proposals, shapes, truths)
        if self.training:
            return {
                "proposal": first["loss_objectness"],
                "proposal_box": first["loss_rpn_box_reg"],
                "class": second["loss_classifier"],
                "box": second["loss_box_reg"],
                **({"giou": second["loss_giou"]} if "loss_giou" in second else {}),
            }
        return [{**one, "labels": one["labels"] - 1} for one in found]

    @torch.no_grad()
    def detect(self, images: Tensor, mask: Tensor | None, sizes: Sizes) -> list[dict[str, Tensor]]:
        """Detections of a batch in pixels of the original images; see `Detector.detect`.

        Args:
            images, mask: as in `forward`.
            sizes: [B, 2] (height, width) of the original images, in pixels.
        """
        check_sizes(sizes, images)
        sizes = torch.as_tensor(sizes).to(images.device)
        scale = sizes.flip(-1) / image_sizes(images, mask)  # [B, 2] of (width, height)
        found = self(images, mask)
        return [{**one, "boxes": one["boxes"].float() * s.repeat(2)} for one, s in zip(found, scale, strict=True)]


class ProposalHead(RPNHead):
    """torchvision's first head, whose numbers are at least float32 under autocast too.

    torchvision computes boxes in the type of a head's offsets, and bfloat16 knows every fourth pixel beyond 512.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = super().forward(x)
        return [at_least_float32(level) for level in logits], [at_least_float32(level) for level in offsets]


class RegionPredictor(FastRCNNPredictor):
    """torchvision's second head, in the same way."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = super().forward(x)
        return at_least_float32(logits), at_least_float32(offsets)


class RegionHeads(RoIHeads):
    """torchvision's second stage, with a generalised IoU loss beside smooth L1 where `giou_weight` is not 0.

    The loss has the same normaliser as smooth L1: the number of sampled regions.
    """

    def __init__(self, *args: Any, giou_weight: float, **options: Any):
        super().__init__(*args, **options)
        self.giou_weight = giou_weight

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not (self.training and self.giou_weight):
            return super().forward(features, proposals, image_shapes, targets)
        regions, objects, labels, offsets = self.select_training_samples(proposals, targets)
        logits, moves = self.box_predictor(self.box_head(self.box_roi_pool(features, regions, image_shapes)))
        class_loss, box_loss = fastrcnn_loss(logits, moves, labels, offsets)
        assert targets is not None  # without them the sampling has failed
        label = torch.cat(labels)
        positive = label > 0
        boxes = self.box_coder.decode(moves, regions)[torch.arange(len(label), device=label.device), label]
        truths = torch.cat([_rows(t["boxes"], index) for t, index in zip(targets, objects, strict=True)])
        giou = generalized_box_iou_loss(boxes[positive].float(), truths[positive], reduction="sum") / len(label)
        losses = {"loss_classifier": class_loss, "loss_box_reg": box_loss, "loss_giou": self.giou_weight * giou}
        return [], losses


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """The boxes [T, 4] at an index [n]; zeros where an image has none."""
    return boxes[index] if len(boxes) else boxes.new_zeros(len(index), 4)
