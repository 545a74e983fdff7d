"""Parameter names, family by family, and the places in a detrkit detector that they belong to.

A rule is a pattern for a whole official name and a template for ours. A repeat is a pattern for a name that official
checkpoints carry twice, and the first name of the same tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# COCO's own ids, which the official DETR codes use as labels: 91 outputs, of which 11 are never trained.
COCO_SLOTS = 91
COCO_NAMES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9:
    "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16:
    "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra",
    25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35:
    "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41:
    "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork",
    49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56:
    "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64:
    "potted plant", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75:
    "remote", 76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82:
    "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90:
    "toothbrush",
}  # fmt: skip


Config = Mapping[str, Any]
"""What stands in the `config.json` beside a checkpoint"""


@dataclass(frozen=True)
class Setting:
    """A value that a recipe must have to compute what the checkpoint's own code computes, and who says so."""

    key: str
    value: Any
    why: str
    assumed: bool = False
    """it could be otherwise, and nothing tells"""


def _no_settings(config: Config | None) -> Sequence[Setting]:
    return ()


@dataclass(frozen=True)
class Family:
    """The naming of one code base."""

    rules: tuple[tuple[str, str], ...]
    repeats: tuple[tuple[str, str], ...] = ()
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    """what is done to a checkpoint's tensors, under their official names, before they are renamed"""
    coco_classes: int = COCO_SLOTS
    """K of its COCO checkpoints, once they are prepared: a class for every id, or for every category"""
    of: str = ""
    """the family whose recipes take these checkpoints too: another code base's naming of the same system"""
    mark: str = ""
    """a pattern for a name that tells these checkpoints from those of `of`"""
    settings: Callable[[Config | None], Sequence[Setting]] = _no_settings
    """what the recipe must say, by the checkpoint's configuration or without one; raises CheckpointError"""
    model_type: str = ""
    """what `model_type` in a configuration calls the system"""
    nearest: Callable[[Config], str] = str
    """the name of the nearest recipe, by a configuration of that `model_type`"""

    def marks(self, names: Collection[str]) -> bool:
        """Whether these are names of this naming, by its mark."""
        return bool(self.mark) and any(re.fullmatch(self.mark, name) for name in names)

    def ours(self, official: str, known: Collection[str] = ()) -> str | None:
        """Our name for an official one; None if no rule knows it.

        Where several rules know it, as the place of a head depends on how many there are, the first name that is among
        the `known` ones counts, or else the first.
        """
        names = _expanded(self.rules, official)
        return next((name for name in names if name in known), next(iter(names), None))

    def first_name(self, official: str) -> str | None:
        """The name under which the same tensor came first; None if this is no repeat."""
        return next(iter(_expanded(self.repeats, official)), None)


def _expanded(rules: tuple[tuple[str, str], ...], name: str) -> list[str]:
    return [match.expand(template) for pattern, template in rules if (match := re.fullmatch(pattern, name))]


def one_label_more(state: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    """The tensors with one row more in the label table of that name, where there is one.

    Some codes' tables have K rows; ours has K + 1, of which DINO's denoising does not read the last.
    """
    labels = state.get(name)
    return (
        state
        if labels is None or not labels.ndim
        else {**state, name: torch.cat((labels, torch.zeros_like(labels[:1])))}
    )


BACKBONE_AND_ENCODER = (
    (r"backbone\.0\.body\.(.+)", r"backbone.body.\1"),
    (r"input_proj\.(weight|bias)", r"encoder.projection.\1"),
    (
        r"transformer\.encoder\.layers\.(\d+)\.self_attn\.(in_proj_weight|in_proj_bias|out_proj\..+)",
        r"encoder.layers.\1.self_attention.\2",
    ),
    (
        r"transformer\.encoder\.layers\.(\d+)\.(linear1\..+|linear2\..+|activation\.weight)",
        r"encoder.layers.\1.feedforward.\2",
    ),
    (r"transformer\.encoder\.layers\.(\d+)\.(norm[12]\..+)", r"encoder.layers.\1.\2"),
)

_LAYER = r"transformer\.decoder\.layers\.(\d+)\."
_OURS = r"decoder.layers.\1."

CONDITIONAL_DECODER = (
    (_LAYER + r"sa_qcontent_proj\.(.+)", _OURS + r"self_attention.query.\2"),
    (_LAYER + r"sa_kcontent_proj\.(.+)", _OURS + r"self_attention.key.\2"),
    (_LAYER + r"sa_v_proj\.(.+)", _OURS + r"self_attention.value.\2"),
    (_LAYER + r"self_attn\.out_proj\.(.+)", _OURS + r"self_attention.out.\2"),
    (_LAYER + r"ca_qcontent_proj\.(.+)", _OURS + r"cross_attention.terms.content.projection.\2"),
    (_LAYER + r"ca_qpos_sine_proj\.(.+)", _OURS + r"cross_attention.terms.point.projection.\2"),
    (_LAYER + r"ca_kcontent_proj\.(.+)", _OURS + r"cross_attention.keys.content.projection.\2"),
    (_LAYER + r"ca_kpos_proj\.(.+)", _OURS + r"cross_attention.keys.position.projection.\2"),
    (_LAYER + r"ca_v_proj\.(.+)", _OURS + r"cross_attention.value.\2"),
    (_LAYER + r"cross_attn\.out_proj\.(.+)", _OURS + r"cross_attention.out.\2"),
    (_LAYER + r"(linear1\..+|linear2\..+|activation\.weight)", _OURS + r"feedforward.\2"),
    (_LAYER + r"(norm[123]\..+)", _OURS + r"\2"),
    (r"transformer\.decoder\.query_scale\.(.+)", r"decoder.content_scale.\1"),
    (r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
)

DAB_DETR = Family(
    rules=(
        *BACKBONE_AND_ENCODER,
        *CONDITIONAL_DECODER,
        (r"transformer\.encoder\.query_scale\.(.+)", r"encoder.scales.0.\1"),
        (_LAYER + r"sa_qpos_proj\.(.+)", _OURS + r"self_attention.query_position.box.\2"),
        (_LAYER + r"sa_kpos_proj\.(.+)", _OURS + r"self_attention.key_position.box.\2"),
        (_LAYER + r"ca_qpos_proj\.(.+)", _OURS + r"cross_attention.first.box.\2"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.positions.box.embed.\1"),
        (r"transformer\.decoder\.ref_anchor_head\.(.+)", r"decoder.positions.box.size.\1"),
        (r"bbox_embed\.(layers\..+)", r"decoder.head.offset_heads.box.0.\1"),
        (r"bbox_embed\.(\d+)\.(layers\..+)", r"decoder.head.offset_heads.box.\1.\2"),
        (r"class_embed\.(weight|bias)", r"decoder.head.classes.0.layers.0.\1"),
        (r"refpoint_embed\.weight", r"queries.anchors"),
        (r"transformer\.patterns\.weight", r"queries.patterns"),
    ),
    repeats=((r"transformer\.decoder\.(bbox_embed\..+)", r"\1"),),
)

DN_DETR = Family(
    rules=(*DAB_DETR.rules, (r"label_enc\.weight", r"queries.labels")),
    repeats=DAB_DETR.repeats,
)

SAP_DETR = Family(
    rules=(
        *BACKBONE_AND_ENCODER,
        *CONDITIONAL_DECODER,
        (r"transformer\.encoder\.query_scales\.(.+)", r"encoder.scales.\1"),
        (_LAYER + r"sa_point_qpos_proj\.(.+)", _OURS + r"self_attention.query_position.point.\2"),
        (_LAYER + r"sa_point_kpos_proj\.(.+)", _OURS + r"self_attention.key_position.point.\2"),
        (_LAYER + r"sa_bbox_qpos_proj\.(.+)", _OURS + r"self_attention.query_position.side.\2"),
        (_LAYER + r"sa_bbox_kpos_proj\.(.+)", _OURS + r"self_attention.key_position.side.\2"),
        (_LAYER + r"ca_point_qpos_proj\.(.+)", _OURS + r"cross_attention.first.point.\2"),
        (_LAYER + r"ca_bbox_qpos_proj\.(.+)", _OURS + r"cross_attention.first.side.\2"),
        (_LAYER + r"ca_bbox_qpos_sine_proj\.(.+)", _OURS + r"cross_attention.terms.side.projection.\2"),
        (_LAYER + r"gaussian_proj\.(.+)", _OURS + r"cross_attention.terms.side_directed_gaussian.predict.\2"),
        (r"ref_point_head\.(.+)", r"decoder.positions.point.embed.\1"),
        (r"ref_bbox_head\.(.+)", r"decoder.positions.side.embed.\1"),
        (r"bbox_embed\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
        (r"point_embed\.(\d+)\.(.+)", r"decoder.head.offset_heads.point.\1.\2"),
        (r"class_embed\.(\d+)\.(.+)", r"decoder.head.classes.\1.\2"),
        (r"obj_embed\.(.+)", r"decoder.head.objectness.\1"),
        (r"refpoint_embed\.weight", r"queries.points"),
        (r"refbbox_embed\.weight", r"queries.sides"),
        (r"transformer\.point_transfer\.(.+)", r"queries.content.blocks.\1"),
    ),
    repeats=(
        (r"transformer\.decoder\.((?:bbox_embed|point_embed|ref_bbox_head|ref_point_head)\..+)", r"\1"),
        (r"class_embed\.(?:[2-9]|\d\d+)\.(.+)", r"class_embed.1.\1"),
        (r"(bbox_embed|point_embed)\.(?:[1-9]|\d\d+)\.(.+)", r"\1.0.\2"),
    ),
)
