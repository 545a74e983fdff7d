"""Official parameter names of the systems with dense attention: DETR, Conditional DETR."""

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
