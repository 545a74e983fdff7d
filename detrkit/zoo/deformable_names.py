"""Official parameter names of Deformable DETR and DINO."""

from __future__ import annotations

from detrkit.zoo.names import BACKBONE_AND_ENCODER, Family

_SAMPLING = r"(sampling_offsets|attention_weights)\.(.+)"
_ENCODER = r"transformer\.encoder\.layers\.(\d+)\."
_DECODER = r"transformer\.decoder\.layers\.(\d+)\."
_OURS = r"decoder.layers.\1."

DEFORMABLE_TRANSFORMER = (
    (r"input_proj\.(.+)", r"encoder.inputs.projections.\1"),
    (r"transformer\.level_embed", r"encoder.inputs.vectors"),
    (_ENCODER + r"self_attn\." + _SAMPLING, r"encoder.layers.\1.self_attention.\2.\3"),
    (_ENCODER + r"self_attn\.value_proj\.(.+)", r"encoder.layers.\1.self_attention.value.\2"),
    (_ENCODER + r"self_attn\.output_proj\.(.+)", r"encoder.layers.\1.self_attention.out.\2"),
    *BACKBONE_AND_ENCODER,
    (_DECODER + r"self_attn\.(.+)", _OURS + r"self_attention.attention.\2"),
    (_DECODER + r"cross_attn\." + _SAMPLING, _OURS + r"cross_attention.attention.\2.\3"),
    (_DECODER + r"cross_attn\.value_proj\.(.+)", _OURS + r"cross_attention.attention.value.\2"),
    (_DECODER + r"cross_attn\.output_proj\.(.+)", _OURS + r"cross_attention.attention.out.\2"),
    (_DECODER + r"(linear1\..+|linear2\..+)", _OURS + r"feedforward.\2"),
    # MS-DETR's feed-forward network for its one-to-many predictions
    (_DECODER + r"linear3\.(.+)", _OURS + r"many_first.feedforward.linear1.\2"),
    (_DECODER + r"linear4\.(.+)", _OURS + r"many_first.feedforward.linear2.\2"),
    (_DECODER + r"norm4\.(.+)", _OURS + r"many_first.norm.\2"),
    # Official numbers follow the order of writing, ours that of use: self-attention comes first.
    (_DECODER + r"norm1\.(.+)", _OURS + r"norm2.\2"),
    (_DECODER + r"norm2\.(.+)", _OURS + r"norm1.\2"),
    (_DECODER + r"norm3\.(.+)", _OURS + r"norm3.\2"),
    (r"class_embed\.(\d+)\.(.+)", r"decoder.head.classes.\1.layers.0.\2"),
    (r"bbox_embed\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
    (r"transformer\.enc_output\.(.+)", r"queries.proposals.project.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"queries.proposals.norm.\1"),
)
"""What both share."""

REPEATED_HEADS = (
    (r"transformer\.decoder\.((?:class_embed|bbox_embed)\..+)", r"\1"),
    (r"(class_embed|bbox_embed)\.(?:[1-9]|\d\d+)\.(.+)", r"\1.0.\2"),
)
"""Both code bases name the heads a second time in the decoder, and shared ones once a layer."""

DEFORMABLE_DETR = Family(
    rules=(
        *DEFORMABLE_TRANSFORMER,
        # With two stages the head after the decoder's is the encoder's.
        (r"class_embed\.\d+\.(.+)", r"queries.proposals.head.classes.0.layers.0.\1"),
        (r"bbox_embed\.\d+\.(.+)", r"queries.proposals.head.offset_heads.box.0.\1"),
        (r"query_embed\.weight", r"queries.table"),
        (r"query_embed\.weight", r"queries.content"),  # two stages with learned content (H-DETR)
        (r"transformer\.reference_points\.(.+)", r"queries.point.\1"),
        (r"transformer\.pos_trans\.(.+)", r"queries.place.\1"),
        (r"transformer\.pos_trans_norm\.(.+)", r"queries.norm.\1"),
    ),
    repeats=REPEATED_HEADS,
)

DINO = Family(
    rules=(
        *DEFORMABLE_TRANSFORMER,
        (r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.positions.box.embed.\1"),
        (r"transformer\.enc_out_class_embed\.(.+)", r"queries.proposals.head.classes.0.layers.0.\1"),
        (r"transformer\.enc_out_bbox_embed\.(.+)", r"queries.proposals.head.offset_heads.box.0.\1"),
        (r"transformer\.tgt_embed\.weight", r"queries.content"),
        (r"transformer\.refpoint_embed\.weight", r"queries.anchors"),
        (r"label_enc\.weight", r"blocks.denoising.labels"),
    ),
    repeats=REPEATED_HEADS,
)
