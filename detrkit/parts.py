"""All shipped parts, and the sections of a recipe. Importing this module registers them."""

from __future__ import annotations

from typing import Annotated

import detrkit.attention.aligned
import detrkit.attention.conditional
import detrkit.attention.deformable
import detrkit.attention.head_gaussian
import detrkit.attention.plain
import detrkit.attention.query_position
import detrkit.attention.raw_box
import detrkit.attention.relation
import detrkit.attention.row_column
import detrkit.attention.term_sum
import detrkit.attention.terms
import detrkit.backbones.timm_backbone
import detrkit.blocks.denoising
import detrkit.blocks.dense
import detrkit.blocks.groups
import detrkit.blocks.hybrid
import detrkit.blocks.mixed
import detrkit.data.auto_source
import detrkit.data.by_epoch
import detrkit.data.coco_source
import detrkit.data.dense
import detrkit.data.labelme_source
import detrkit.data.shapes
import detrkit.data.square
import detrkit.data.transforms
import detrkit.data.voc_source
import detrkit.data.yolo_source
import detrkit.decoder
import detrkit.detector
import detrkit.encoders.deformable
import detrkit.encoders.hybrid
import detrkit.encoders.row_column
import detrkit.encoders.transformer
import detrkit.engine.parameter_rules
import detrkit.faster_rcnn
import detrkit.geometry.box
import detrkit.geometry.none
import detrkit.geometry.point
import detrkit.heads
import detrkit.losses.giou_aware
import detrkit.losses.iou_aware
import detrkit.losses.matchability
import detrkit.losses.position_supervised
import detrkit.losses.quality_focal
import detrkit.losses.terms
import detrkit.losses.varifocal
import detrkit.matching.costs
import detrkit.matching.high_order
import detrkit.matching.hungarian
import detrkit.matching.many_to_one
import detrkit.matching.position_modulated
import detrkit.position
import detrkit.queries.anchor_points
import detrkit.queries.anchors
import detrkit.queries.distinct
import detrkit.queries.learned
import detrkit.queries.points
import detrkit.queries.selection
import detrkit.queries.token_selection
import detrkit.sap
import detrkit.zoo.families  # noqa: F401
from detrkit.detections import DetectOptions
from detrkit.engine.options import EvaluateOptions, TrainOptions
from detrkit.recipe import Factory, Slot, define_section

define_section("detector", Slot("detector"), default="detr")
define_section("backbone", Slot("backbone"), default="timm")
define_section("position", Slot("position"), default="sine")
define_section("encoder", Slot("encoder"), default="transformer")
define_section("queries", Slot("queries"))
define_section("geometry", Slot("geometry"))
define_section("blocks", Annotated[dict[str, Factory], Slot("block")])
define_section("decoder", Slot("decoder"), default="transformer")
define_section("head", Slot("head"), default="mlp")
define_section("matcher", Slot("matcher"), default="hungarian")
define_section("losses", Annotated[dict[str, Factory], Slot("loss")])
define_section("detect", DetectOptions)
define_section("data", Slot("data"), default="coco")
define_section("train", TrainOptions)
define_section("evaluate", EvaluateOptions)
