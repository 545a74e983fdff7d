"""Official parameter names of DETR, Conditional DETR, SMCA, SAM-DETR and Anchor DETR."""

from __future__ import annotations

from detrkit.zoo.names import BACKBONE_AND_ENCODER, CONDITIONAL_DECODER, Family

_LAYER = r"transformer\.decoder\.layers\.(\d+)\."
_OURS = r"decoder.layers.\1."

SHARED_HEADS = (
    (r"bbox_embed\.(layers\..+)", r"decoder.head.offset_heads.box.0.\1"),
    (r"class_embed\.(weight|bias)", r"decoder.head.classes.0.layers.0.\1"),
)

LEARNED_QUERIES = ((r"query_embed\.weight", r"queries.embedding"),)

PLAIN_DECODER = (
    (_LAYER + r"self_attn\.(.+)", _OURS + r"self_attention.attention.\2"),
    (_LAYER + r"multihead_attn\.(.+)", _OURS + r"cross_attention.attention.\2"),
    (_LAYER + r"(linear[12]\..+)", _OURS + r"feedforward.\2"),
    (_LAYER + r"(norm[123]\..+)", _OURS + r"\2"),
    (r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
)

DETR = Family(rules=(*BACKBONE_AND_ENCODER, *PLAIN_DECODER, *SHARED_HEADS, *LEARNED_QUERIES))

CONDITIONAL_DETR = Family(
    rules=(
        *BACKBONE_AND_ENCODER,
        *CONDITIONAL_DECODER,
        (_LAYER + r"sa_qpos_proj\.(.+)", _OURS + r"self_attention.query_position.learned.\2"),
        (_LAYER + r"sa_kpos_proj\.(.+)", _OURS + r"self_attention.key_position.learned.\2"),
        (_LAYER + r"ca_qpos_proj\.(.+)", _OURS + r"cross_attention.first.learned.\2"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"queries.point.\1"),
        *SHARED_HEADS,
        *LEARNED_QUERIES,
    )
)

_GAUSSIAN = _OURS + r"cross_attention.terms.head_gaussian."

SMCA_DETR = Family(
    rules=(
        (r"transformer\.decoder\.layers\.0\.norm4\.(.+)", r"queries.point_norm.\1"),
        (r"transformer\.decoder\.layers\.0\.point1\.(.+)", r"queries.point.\1"),
        (_LAYER + r"norm4\.(.+)", _GAUSSIAN + r"norm.\2"),
        (_LAYER + r"point2\.(.+)", _GAUSSIAN + r"offset.\2"),
        (_LAYER + r"point3\.(.+)", _GAUSSIAN + r"scale.\2"),
        *DETR.rules,
    )
)

_CROSS = _OURS + r"cross_attention."

SAM_DETR = Family(
    rules=(
        *BACKBONE_AND_ENCODER,
        (r"input_proj\.0\.0\.(.+)", r"encoder.projection.\1"),
        (r"input_proj\.0\.1\.(.+)", r"encoder.projection_norm.\1"),
        (_LAYER + r"sa_qpos_proj\.(.+)", _OURS + r"self_attention.query_position.point.\2"),
        (_LAYER + r"sa_kpos_proj\.(.+)", _OURS + r"self_attention.key_position.point.\2"),
        (_LAYER + r"ca_qcontent_proj\.(.+)", _CROSS + r"query.\2"),
        (_LAYER + r"ca_kcontent_proj\.(.+)", _CROSS + r"key.\2"),
        (_LAYER + r"ca_qpos_sine_proj\.(.+)", _CROSS + r"query_position.\2"),
        (_LAYER + r"ca_kpos_sine_proj\.(.+)", _CROSS + r"key_position.\2"),
        (_LAYER + r"point1\.0\.(.+)", _CROSS + r"places.0.\2"),
        (_LAYER + r"point2\.0\.(.+)", _CROSS + r"places.3.\2"),
        (_LAYER + r"point2\.2\.(.+)", _CROSS + r"places.5.\2"),
        (_LAYER + r"point2\.4\.(.+)", _CROSS + r"places.7.\2"),
        (_LAYER + r"point2\.6\.(.+)", _CROSS + r"places.9.\2"),
        (_LAYER + r"attn1\.(.+)", _CROSS + r"content_gate.\2"),
        (_LAYER + r"attn2\.(.+)", _CROSS + r"position_gate.\2"),
        *CONDITIONAL_DECODER,
        (r"class_embed\.(\d+)\.(.+)", r"decoder.head.classes.\1.layers.0.\2"),
        (r"bbox_embed\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
        (r"query_embed\.weight", r"queries.anchors"),
    ),
    repeats=((r"transformer\.decoder\.(bbox_embed\..+)", r"\1"),),
)

_ANCHOR_ENCODER = r"transformer\.encoder_layers\.(\d+)\."
_ANCHOR_DECODER = r"transformer\.decoder_layers\.(\d+)\."

ANCHOR_DETR = Family(
    rules=(
        (r"backbone\.body\.(.+)", r"backbone.body.\1"),
        (r"input_proj\.0\.0\.(.+)", r"encoder.projection.\1"),
        (r"input_proj\.0\.1\.(.+)", r"encoder.projection_norm.\1"),
        (r"transformer\.position\.weight", r"queries.points"),
        (r"transformer\.pattern\.weight", r"queries.patterns"),
        (r"transformer\.adapt_pos1d\.0\.(.+)", r"encoder.position.embed.layers.0.\1"),
        (r"transformer\.adapt_pos1d\.2\.(.+)", r"encoder.position.embed.layers.1.\1"),
        (r"transformer\.adapt_pos2d\.0\.(.+)", r"decoder.positions.point.embed.layers.0.\1"),
        (r"transformer\.adapt_pos2d\.2\.(.+)", r"decoder.positions.point.embed.layers.1.\1"),
        (_ANCHOR_ENCODER + r"self_attn\.(.+)", r"encoder.layers.\1.self_attention.\2"),
        (_ANCHOR_ENCODER + r"norm1\.(.+)", r"encoder.layers.\1.norm1.\2"),
        (_ANCHOR_ENCODER + r"ffn\.norm2\.(.+)", r"encoder.layers.\1.norm2.\2"),
        (_ANCHOR_ENCODER + r"ffn\.(linear[12]\..+)", r"encoder.layers.\1.feedforward.\2"),
        # Official numbers follow the order of writing, ours that of use: self-attention comes first.
        (_ANCHOR_DECODER + r"norm1\.(.+)", _OURS + r"norm2.\2"),
        (_ANCHOR_DECODER + r"norm2\.(.+)", _OURS + r"norm1.\2"),
        (_ANCHOR_DECODER + r"ffn\.norm2\.(.+)", _OURS + r"norm3.\2"),
        (_ANCHOR_DECODER + r"ffn\.(linear[12]\..+)", _OURS + r"feedforward.\2"),
        (_ANCHOR_DECODER + r"self_attn\.(.+)", _OURS + r"self_attention.attention.\2"),
        (_ANCHOR_DECODER + r"cross_attn\.(.+)", _OURS + r"cross_attention.attention.\2"),
        (r"transformer\.class_embed\.0\.(.+)", r"decoder.head.classes.0.layers.0.\1"),
        (r"transformer\.bbox_embed\.0\.(.+)", r"decoder.head.offset_heads.box.0.\1"),
    ),
    repeats=((r"(transformer\.(?:class_embed|bbox_embed))\.(?:[1-9]|\d\d+)\.(.+)", r"\1.0.\2"),),
)
