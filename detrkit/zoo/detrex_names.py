"""detrex's parameter names for DINO and Deformable DETR, which Stable-DINO, Align-DETR and Rank-DETR share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from detrkit.zoo.names import Config, Family, Setting, one_label_more

_ENCODER = r"transformer\.encoder\.layers\.(\d+)\."
_DECODER = r"transformer\.decoder\.layers\.(\d+)\."
_THEIRS = r"encoder.layers.\1."
_OURS = r"decoder.layers.\1."
_MARK = r"transformer\.(?:encoder|decoder)\.layers\.\d+\.attentions\.\d+\..+"


def _resnet() -> Iterator[tuple[str, str]]:
    """Rules for detectron2's ResNet, whose stages are numbered from 2."""
    body = "backbone.body."
    yield r"backbone\.stem\.conv1\.weight", body + "conv1.weight"
    yield r"backbone\.stem\.conv1\.norm\.(.+)", body + r"bn1.\1"
    for stage in range(2, 6):
        block, ours = rf"backbone\.res{stage}\.(\d+)\.", rf"{body}layer{stage - 1}.\1."
        yield block + r"conv(\d)\.weight", ours + r"conv\2.weight"
        yield block + r"conv(\d)\.norm\.(.+)", ours + r"bn\2.\3"
        yield block + r"shortcut\.weight", ours + "downsample.0.weight"
        yield block + r"shortcut\.norm\.(.+)", ours + r"downsample.1.\2"


def _deformable(start: str, ours: str) -> Iterator[tuple[str, str]]:
    """Rules for deformable attention, after `start`, which captures the layer."""
    yield start + r"((?:sampling_offsets|attention_weights)\..+)", ours + r"\2"
    yield start + r"value_proj\.(.+)", ours + r"value.\2"
    yield start + r"output_proj\.(.+)", ours + r"out.\2"


def _layer(start: str, ours: str) -> Iterator[tuple[str, str]]:
    """Rules for what encoder and decoder layers have besides attention."""
    yield start + r"ffns\.0\.layers\.0\.0\.(.+)", ours + r"feedforward.linear1.\2"
    yield start + r"ffns\.0\.layers\.1\.(.+)", ours + r"feedforward.linear2.\2"
    for index in range(3):
        yield start + rf"norms\.{index}\.(.+)", ours + rf"norm{index + 1}.\2"


RULES = (
    *_resnet(),
    (r"neck\.convs\.(\d+)\.conv\.(.+)", r"encoder.inputs.projections.\1.0.\2"),
    (r"neck\.convs\.(\d+)\.norm\.(.+)", r"encoder.inputs.projections.\1.1.\2"),
    (r"neck\.extra_convs\.0\.conv\.(.+)", r"encoder.inputs.projections.3.0.\1"),
    (r"neck\.extra_convs\.0\.norm\.(.+)", r"encoder.inputs.projections.3.1.\1"),
    (r"transformer\.level_embeds", "encoder.inputs.vectors"),
    *_deformable(_ENCODER + r"attentions\.0\.", _THEIRS + "self_attention."),
    *_layer(_ENCODER, _THEIRS),
    (r"transformer\.encoder\.fusion_layer\.0\.(.+)", r"encoder.fusion.project.\1"),
    (r"transformer\.encoder\.fusion_layer\.1\.(.+)", r"encoder.fusion.norm.\1"),
    (_DECODER + r"attentions\.0\.attn\.(.+)", _OURS + r"self_attention.attention.\2"),
    *_deformable(_DECODER + r"attentions\.1\.", _OURS + "cross_attention.attention."),
    *_layer(_DECODER, _OURS),
    (r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.positions.box.embed.\1"),
    (r"class_embed\.(\d+)\.(.+)", r"decoder.head.classes.\1.layers.0.\2"),
    (r"bbox_embed\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
    # The head after the decoder's is the encoder's.
    (r"class_embed\.\d+\.(.+)", r"queries.proposals.head.classes.0.layers.0.\1"),
    (r"bbox_embed\.\d+\.(.+)", r"queries.proposals.head.offset_heads.box.0.\1"),
    (r"transformer\.enc_output\.(.+)", r"queries.proposals.project.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"queries.proposals.norm.\1"),
    (r"transformer\.tgt_embed\.weight", "queries.content"),
    (r"query_embedding\.weight", "queries.content"),
    (r"transformer\.pos_trans\.(.+)", r"queries.place.\1"),
    (r"transformer\.pos_trans_norm\.(.+)", r"queries.norm.\1"),
    (r"label_enc\.weight", "blocks.denoising.labels"),
    # Rank-DETR
    (r"transformer\.decoder\.rank_aware_content_query\.(\d+)\.weight", r"decoder.between.content.\1"),
    (r"transformer\.decoder\.pre_racq_trans\.(.+)", r"decoder.between.before.\1"),
    (r"transformer\.decoder\.post_racq_trans\.(.+)", r"decoder.between.after.\1"),
    (r"rank_adaptive_classhead_emb\.(\d+)\.weight", r"decoder.between.logits.\1"),
)
REPEATS = ((r"transformer\.decoder\.((?:class_embed|bbox_embed)\..+)", r"\1"),)


def _prepare(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return one_label_more(state, "label_enc.weight")


def _settings(config: Config | None) -> Sequence[Setting]:
    why = "detrex codes the places of a map's cells so"
    return (Setting("position.temperature", 10000, why), Setting("position.offset", -0.5, why))


DETREX_DINO = Family(
    rules=RULES,
    repeats=REPEATS,
    prepare=_prepare,
    coco_classes=80,
    of="dino",
    mark=_MARK,
    settings=_settings,
)
DETREX_DEFORMABLE_DETR = Family(
    rules=RULES, repeats=REPEATS, coco_classes=80, of="deformable_detr", mark=_MARK, settings=_settings
)
