"""Parameter names of RT-DETR: the official PyTorch code's, and those of the package `transformers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from detrkit.zoo.names import COCO_NAMES, Family
from detrkit.zoo.rt_detr_settings import raw_pixels, rt_detr, rt_detr_recipe
from detrkit.zoo.transformers_names import pack_projections

_BODY = "backbone.body."
_FUSION = r"encoder.fusion."
_PROPOSALS, _DECODER = r"queries.proposals.", r"decoder.layers.\1."


def _resnet_vd(
    stem: str, block: str, units: tuple[str, str, str], shortcut: str, conv: str, norm: str, first: int
) -> Iterator[tuple[str, str]]:
    """Rules for a ResNet-vd, whose stages are numbered from 0 there and from 1 in timm.

    Args:
        stem: pattern before one of the stem's three convolutions, {} for its number.
        block: before a block, {} for its stage; it captures the block's number.
        units: of a block's convolutions.
        shortcut: before a shortcut's convolution and norm.
        conv, norm: what these two are called.
        first: the number of the stem's first convolution.
    """
    timm = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))
    for number, (convolution, normed) in enumerate(timm, first):
        yield stem.format(number) + rf"\.{conv}\.(.+)", rf"{_BODY}{convolution}.\1"
        yield stem.format(number) + rf"\.{norm}\.(.+)", rf"{_BODY}{normed}.\1"
    for stage in range(4):
        start, ours = block.format(stage), rf"{_BODY}layer{stage + 1}.\1."
        for number, unit in enumerate(units, 1):
            yield rf"{start}\.{unit}\.{conv}\.(.+)", rf"{ours}conv{number}.\2"
            yield rf"{start}\.{unit}\.{norm}\.(.+)", rf"{ours}bn{number}.\2"
        yield rf"{start}\.{shortcut}{conv}\.(.+)", rf"{ours}downsample.1.\2"
        yield rf"{start}\.{shortcut}{norm}\.(.+)", rf"{ours}downsample.2.\2"


def _encoder(start: str, inputs: str, outputs: str) -> Iterator[tuple[str, str]]:
    """Rules for the hybrid encoder's convolutions; `inputs` and `outputs` are patterns before a level's number."""
    for theirs, ours in ((inputs, "encoder.inputs."), (outputs, "encoder.outputs.")):
        yield theirs + r"\.(\d+)\.(?:0|conv)\.(.+)", ours + r"\1.conv.\2"
        yield theirs + r"\.(\d+)\.(?:1|norm)\.(.+)", ours + r"\1.norm.\2"
    yield start + r"lateral_convs\.(.+)", _FUSION + r"laterals.\1"
    yield start + r"downsample_convs\.(.+)", _FUSION + r"halving.\1"
    for theirs, ours in (("fpn_blocks", "down"), ("pan_blocks", "up")):
        one = rf"{start}{theirs}\.(\d+)\."
        for convolution, name in (("conv1", "into"), ("conv2", "around"), ("conv3", "last")):
            yield rf"{one}{convolution}\.(.+)", rf"{_FUSION}{ours}.\1.{name}.\2"
        for convolution, name in (("conv1", "wide"), ("conv2", "narrow")):
            yield rf"{one}bottlenecks\.(\d+)\.{convolution}\.(.+)", rf"{_FUSION}{ours}.\1.blocks.\2.{name}.\3"


def _deformable(start: str) -> Iterator[tuple[str, str]]:
    """Rules for the decoder's deformable attention, after `start`, which captures the layer."""
    yield start + r"\.((?:sampling_offsets|attention_weights)\..+)", _DECODER + r"cross_attention.attention.\2"
    yield start + r"\.value_proj\.(.+)", _DECODER + r"cross_attention.attention.value.\2"
    yield start + r"\.output_proj\.(.+)", _DECODER + r"cross_attention.attention.out.\2"


def _queries(start: str) -> Iterator[tuple[str, str]]:
    """Rules for query selection and denoising."""
    yield start + r"denoising_class_embed\.weight", r"blocks.denoising.labels"
    yield start + r"enc_output\.(?:0|proj)\.(.+)", _PROPOSALS + r"project.\1"
    yield start + r"enc_output\.(?:1|norm)\.(.+)", _PROPOSALS + r"norm.\1"
    yield start + r"enc_score_head\.(.+)", _PROPOSALS + r"head.classes.0.layers.0.\1"
    yield start + r"enc_bbox_head\.(.+)", _PROPOSALS + r"head.offset_heads.box.0.\1"
    yield r"(?:model\.)?decoder\.query_pos_head\.(.+)", r"decoder.positions.raw_box.embed.\1"


_LAYER, _THEIRS = r"encoder\.encoder\.0\.layers\.(\d+)\.", r"decoder\.decoder\.layers\.(\d+)\."


def _without_constants(official: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """No anchors and no scales of sampling points, which RT-DETRv2 keeps and nobody trains."""
    constant = ("decoder.anchors", "decoder.valid_mask")
    return {n: t for n, t in official.items() if n not in constant and not n.endswith(".num_points_scale")}


RT_DETR = Family(
    rules=(
        *_resnet_vd(
            stem=r"backbone\.conv1\.conv1_{}",
            block=r"backbone\.res_layers\.{}\.blocks\.(\d+)",
            units=("branch2a", "branch2b", "branch2c"),
            shortcut=r"short\.(?:conv\.)?",
            conv="conv",
            norm="norm",
            first=1,
        ),
        *_encoder(r"encoder\.", r"encoder\.input_proj", r"decoder\.input_proj"),
        (_LAYER + r"self_attn\.(.+)", r"encoder.layers.\1.self_attention.\2"),
        (_LAYER + r"(linear[12]\..+)", r"encoder.layers.\1.feedforward.\2"),
        (_LAYER + r"(norm[12]\..+)", r"encoder.layers.\1.\2"),
        (_THEIRS + r"self_attn\.(.+)", _DECODER + r"self_attention.attention.\2"),
        *_deformable(r"decoder\.decoder\.layers\.(\d+)\.cross_attn"),
        (_THEIRS + r"(linear[12]\..+)", _DECODER + r"feedforward.\2"),
        (_THEIRS + r"(norm[123]\..+)", _DECODER + r"\2"),
        *_queries(r"decoder\."),
        (r"decoder\.tgt_embed\.weight", r"queries.content"),
        (r"decoder\.dec_score_head\.(\d+)\.(.+)", r"decoder.head.classes.\1.layers.0.\2"),
        (r"decoder\.dec_bbox_head\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
    ),
    prepare=_without_constants,
    coco_classes=len(COCO_NAMES),
    settings=raw_pixels,
)

_LAYER, _THEIRS = r"model\.encoder\.(?:encoder|aifi)\.0\.layers\.(\d+)\.", r"model\.decoder\.layers\.(\d+)\."


def _prepare(official: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """One matrix for queries, keys and values; heads under their names in the decoder, where version 4 has two."""
    state = pack_projections(official)
    return {name: tensor for name, tensor in state.items() if f"model.decoder.{name}" not in state}


TRANSFORMERS_RT_DETR = Family(
    rules=(
        *_resnet_vd(
            stem=r"model\.backbone\.model\.embedder\.embedder\.{}",
            block=r"model\.backbone\.model\.encoder\.stages\.{}\.layers\.(\d+)",
            units=(r"layer\.0", r"layer\.1", r"layer\.2"),
            shortcut=r"shortcut\.(?:1\.)?",
            conv="convolution",
            norm="normalization",
            first=0,
        ),
        *_encoder(r"model\.encoder\.", r"model\.encoder_input_proj", r"model\.decoder_input_proj"),
        (_LAYER + r"self_attn\.(in_proj_.+)", r"encoder.layers.\1.self_attention.\2"),
        (_LAYER + r"self_attn\.(?:out|o)_proj\.(.+)", r"encoder.layers.\1.self_attention.out_proj.\2"),
        (_LAYER + r"(?:mlp\.)?fc([12])\.(.+)", r"encoder.layers.\1.feedforward.linear\2.\3"),
        (_LAYER + r"self_attn_layer_norm\.(.+)", r"encoder.layers.\1.norm1.\2"),
        (_LAYER + r"final_layer_norm\.(.+)", r"encoder.layers.\1.norm2.\2"),
        (_THEIRS + r"self_attn\.(in_proj_.+)", _DECODER + r"self_attention.attention.\2"),
        (_THEIRS + r"self_attn\.(?:out|o)_proj\.(.+)", _DECODER + r"self_attention.attention.out_proj.\2"),
        *_deformable(r"model\.decoder\.layers\.(\d+)\.encoder_attn"),
        (_THEIRS + r"(?:mlp\.)?fc([12])\.(.+)", _DECODER + r"feedforward.linear\2.\3"),
        (_THEIRS + r"self_attn_layer_norm\.(.+)", _DECODER + r"norm1.\2"),
        (_THEIRS + r"encoder_attn_layer_norm\.(.+)", _DECODER + r"norm2.\2"),
        (_THEIRS + r"final_layer_norm\.(.+)", _DECODER + r"norm3.\2"),
        *_queries(r"model\."),
        (r"(?:model\.decoder\.)?class_embed\.(\d+)\.(.+)", r"decoder.head.classes.\1.layers.0.\2"),
        (r"(?:model\.decoder\.)?bbox_embed\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
    ),
    prepare=_prepare,
    of="rt_detr",
    mark=r"model\.decoder_input_proj\.0\.0\.weight",
    settings=rt_detr,
    model_type="rt_detr",
    nearest=rt_detr_recipe,
)
