"""Official parameter names, family by family, and the places in a detrkit detector that they belong to.

A rule is a pattern for a whole official name and a template for ours. A repeat is a pattern for a name that official
checkpoints carry twice, and the first name of the same tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The naming of one official code base."""

    rules: tuple[tuple[str, str], ...]
    repeats: tuple[tuple[str, str], ...] = ()

    def ours(self, official: str) -> str | None:
        """Our name for an official one; None if no rule knows it."""
        return _first(self.rules, official)

    def first_name(self, official: str) -> str | None:
        """The name under which the same tensor came first; None if this is no repeat."""
        return _first(self.repeats, official)


def _first(rules: tuple[tuple[str, str], ...], name: str) -> str | None:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return None


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
