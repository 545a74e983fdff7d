"""Parameter names of the package `transformers`' DETR, Conditional DETR, DAB-DETR and Deformable DETR.

Models in memory have the names of version 5. Files have those of version 4, whichever version saved them, unless
version 5 was told otherwise; both are read. Three things are undone before names are looked up: queries, keys and
values are projected by a matrix each, heads that are shared are saved once, and a backbone may be transformers' own
ResNet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from detrkit.zoo.names import Family
from detrkit.zoo.transformers_settings import (
    conditional_detr,
    conditional_detr_recipe,
    dab_detr,
    dab_detr_recipe,
    deformable_detr,
    deformable_detr_recipe,
    detr,
    detr_recipe,
)

_ENCODER = r"model\.encoder\.layers\.(\d+)\."
_DECODER = r"model\.decoder\.layers\.(\d+)\."
_OURS = r"decoder.layers.\1."
_SELF, _CROSS = _OURS + r"self_attention.", _OURS + r"cross_attention."

BACKBONE_AND_LAYERS = (
    (r"model\.backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?(.+)", r"backbone.body.\1"),
    (_ENCODER + r"self_attn\.(in_proj_weight|in_proj_bias)", r"encoder.layers.\1.self_attention.\2"),
    (_ENCODER + r"self_attn\.(?:out|o)_proj\.(.+)", r"encoder.layers.\1.self_attention.out_proj.\2"),
    (_ENCODER + r"self_attn_layer_norm\.(.+)", r"encoder.layers.\1.norm1.\2"),
    (_ENCODER + r"final_layer_norm\.(.+)", r"encoder.layers.\1.norm2.\2"),
    (_ENCODER + r"(?:mlp\.)?fc([12])\.(.+)", r"encoder.layers.\1.feedforward.linear\2.\3"),
    (_ENCODER + r"(?:mlp\.)?activation_fn\.(.+)", r"encoder.layers.\1.feedforward.activation.\2"),
    (_DECODER + r"(?:self_attn\.)?self_attn_layer_norm\.(.+)", _OURS + r"norm1.\2"),
    (_DECODER + r"(?:encoder_attn|cross_attn\.cross_attn)_layer_norm\.(.+)", _OURS + r"norm2.\2"),
    (_DECODER + r"(?:mlp\.)?final_layer_norm\.(.+)", _OURS + r"norm3.\2"),
    (_DECODER + r"(?:mlp\.)?fc([12])\.(.+)", _OURS + r"feedforward.linear\2.\3"),
    (_DECODER + r"(?:mlp\.)?activation_fn\.(.+)", _OURS + r"feedforward.activation.\2"),
)
"""What all four share."""

ONE_MAP = (
    (r"model\.input_projection\.(.+)", r"encoder.projection.\1"),
    (r"model\.decoder\.layernorm\.(.+)", r"decoder.norm.\1"),
    (r"(?:class_labels_classifier|class_embed)\.(.+)", r"decoder.head.classes.0.layers.0.\1"),
    (r"bbox_predictor\.(.+)", r"decoder.head.offset_heads.box.0.\1"),
)
"""What those that read one feature map share."""

PLAIN_SELF_ATTENTION = (
    (_DECODER + r"self_attn\.(in_proj_weight|in_proj_bias)", _SELF + r"attention.\2"),
    (_DECODER + r"self_attn\.(?:out|o)_proj\.(.+)", _SELF + r"attention.out_proj.\2"),
)

CONTENT_SCALE = ((r"model\.decoder\.query_scale\.(.+)", r"decoder.content_scale.\1"),)


def pack_projections(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One matrix for queries, keys and values in place of three, where these are alike."""
    state: dict[str, Tensor] = {}
    for name, tensor in official.items():
        projected = re.fullmatch(r"(.+\.(?:self|encoder)_attn\.)([qkv])_proj\.(weight|bias)", name)
        if projected:
            attention, part, kind = projected.groups()
            names = [f"{attention}{letter}_proj.{kind}" for letter in "qkv"]
            three = [official[one] for one in names if one in official]
            alike = len({(given.shape, given.dtype, given.layout) for given in three}) == 1
            if len(three) == 3 and alike and tensor.ndim:
                if part == "q":
                    state[f"{attention}in_proj_{kind}"] = torch.cat(three)
                continue
        state[name] = tensor
    return state


def _prepare(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One matrix for queries, keys and values, and timm's names for the backbone."""
    return {_timm_name(name): tensor for name, tensor in pack_projections(official).items()}


def _timm_name(name: str) -> str:
    """A name of transformers' own ResNet as timm has it, below the same module; any other name as it is."""
    start, found, inner = name.partition(".model.")
    if not found or not start.endswith(("backbone", "conv_encoder")):
        return name
    inner = re.sub(r"^embedder\.embedder\.convolution\.", "conv1.", inner)
    inner = re.sub(r"^embedder\.embedder\.normalization\.", "bn1.", inner)
    below = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", inner)
    if below:
        inner = f"layer{int(below[1]) + 1}.{below[2]}.{below[3]}"
        inner = inner.replace("shortcut.convolution.", "downsample.0.")
        inner = inner.replace("shortcut.normalization.", "downsample.1.")
        inner = re.sub(r"\.layer\.(\d+)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}.", inner)
        inner = re.sub(r"\.layer\.(\d+)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}.", inner)
    return f"{start}.model.{inner}"


def _prepare_dab(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The box head under its first name, by which of the two it was ever saved."""
    state = _prepare(official)
    for name in [name for name in state if name.startswith("model.decoder.bbox_embed.")]:
        first = name.replace("model.decoder.bbox_embed.", "bbox_predictor.")
        if first not in state:
            state[first] = state.pop(name)
    return state


def _prepare_deformable(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Heads under every layer's name, outside the decoder; with two stages there is one more, the encoder's."""
    state = _prepare(official)
    found = [re.match(r"model\.decoder\.layers\.(\d+)\.", name) for name in state]
    count = max([int(match[1]) + 1 for match in found if match], default=0) + ("model.enc_output.weight" in state)
    for name in list(state):
        head = re.fullmatch(r"(?:model\.decoder\.)?(class_embed|bbox_embed)\.(\d+)\.(.+)", name)
        if not head:
            continue
        kind, index, below = head.groups()
        first = f"{kind}.{index}.{below}"
        if first not in state:
            state[first] = state.pop(name)
        # Nothing but the first: all layers share it.
        others = re.compile(rf"(?:model\.decoder\.)?{kind}\.[1-9]\d*\.{re.escape(below)}")
        if not any(others.fullmatch(other) for other in official):
            for layer in range(1, count):
                state.setdefault(f"{kind}.{layer}.{below}", state[f"{kind}.0.{below}"])
    return state


TRANSFORMERS_DETR = Family(
    rules=(
        *BACKBONE_AND_LAYERS,
        *ONE_MAP,
        *PLAIN_SELF_ATTENTION,
        (_DECODER + r"encoder_attn\.(in_proj_weight|in_proj_bias)", _CROSS + r"attention.\2"),
        (_DECODER + r"encoder_attn\.(?:out|o)_proj\.(.+)", _CROSS + r"attention.out_proj.\2"),
        (r"model\.query_position_embeddings\.weight", r"queries.embedding"),
    ),
    prepare=_prepare,
    of="detr",
    mark=r"model\.decoder\.layers\.0\.encoder_attn\.q_proj\.weight",
    settings=detr,
    model_type="detr",
    nearest=detr_recipe,
)

TRANSFORMERS_CONDITIONAL_DETR = Family(
    rules=(
        *BACKBONE_AND_LAYERS,
        *ONE_MAP,
        *CONTENT_SCALE,
        (_DECODER + r"(?:sa_|self_attn\.)q_?content_proj\.(.+)", _SELF + r"query.\2"),
        (_DECODER + r"(?:sa_|self_attn\.)k_?content_proj\.(.+)", _SELF + r"key.\2"),
        (_DECODER + r"(?:sa_|self_attn\.)q_?pos_proj\.(.+)", _SELF + r"query_position.learned.\2"),
        (_DECODER + r"(?:sa_|self_attn\.)k_?pos_proj\.(.+)", _SELF + r"key_position.learned.\2"),
        (_DECODER + r"(?:sa_|self_attn\.)v_proj\.(.+)", _SELF + r"value.\2"),
        (_DECODER + r"self_attn\.(?:out|o)_proj\.(.+)", _SELF + r"out.\2"),
        (_DECODER + r"(?:ca_|encoder_attn\.)q_?content_proj\.(.+)", _CROSS + r"terms.content.projection.\2"),
        (_DECODER + r"(?:ca_|encoder_attn\.)k_?content_proj\.(.+)", _CROSS + r"keys.content.projection.\2"),
        (_DECODER + r"(?:ca_|encoder_attn\.)q_?pos_proj\.(.+)", _CROSS + r"first.learned.\2"),
        (_DECODER + r"(?:ca_|encoder_attn\.)k_?pos_proj\.(.+)", _CROSS + r"keys.position.projection.\2"),
        (_DECODER + r"(?:ca_|encoder_attn\.)q_?pos_sine_proj\.(.+)", _CROSS + r"terms.point.projection.\2"),
        (_DECODER + r"(?:ca_|encoder_attn\.)v_proj\.(.+)", _CROSS + r"value.\2"),
        (_DECODER + r"encoder_attn\.(?:out|o)_proj\.(.+)", _CROSS + r"out.\2"),
        (r"model\.decoder\.ref_point_head\.(.+)", r"queries.point.\1"),
        (r"model\.query_position_embeddings\.weight", r"queries.embedding"),
    ),
    prepare=_prepare,
    of="conditional_detr",
    mark=r"model\.decoder\.layers\.0\.(?:ca_|encoder_attn\.)q_?content_proj\.weight",
    settings=conditional_detr,
    model_type="conditional_detr",
    nearest=conditional_detr_recipe,
)

_SELF_PART = _DECODER + r"self_attn\.self_attn_"
_CROSS_PART = _DECODER + r"cross_attn\.cross_attn_"

TRANSFORMERS_DAB_DETR = Family(
    rules=(
        *BACKBONE_AND_LAYERS,
        *ONE_MAP,
        *CONTENT_SCALE,
        (r"model\.encoder\.query_scale\.(.+)", r"encoder.scales.0.\1"),
        (_SELF_PART + r"query_content_proj\.(.+)", _SELF + r"query.\2"),
        (_SELF_PART + r"key_content_proj\.(.+)", _SELF + r"key.\2"),
        (_SELF_PART + r"query_pos_proj\.(.+)", _SELF + r"query_position.box.\2"),
        (_SELF_PART + r"key_pos_proj\.(.+)", _SELF + r"key_position.box.\2"),
        (_SELF_PART + r"value_proj\.(.+)", _SELF + r"value.\2"),
        (_DECODER + r"self_attn\.self_attn\.output_proj\.(.+)", _SELF + r"out.\2"),
        (_CROSS_PART + r"query_content_proj\.(.+)", _CROSS + r"terms.content.projection.\2"),
        (_CROSS_PART + r"key_content_proj\.(.+)", _CROSS + r"keys.content.projection.\2"),
        (_CROSS_PART + r"query_pos_proj\.(.+)", _CROSS + r"first.box.\2"),
        (_CROSS_PART + r"key_pos_proj\.(.+)", _CROSS + r"keys.position.projection.\2"),
        (_CROSS_PART + r"query_pos_sine_proj\.(.+)", _CROSS + r"terms.point.projection.\2"),
        (_CROSS_PART + r"value_proj\.(.+)", _CROSS + r"value.\2"),
        (_DECODER + r"cross_attn\.cross_attn\.output_proj\.(.+)", _CROSS + r"out.\2"),
        (r"model\.decoder\.ref_point_head\.(.+)", r"decoder.positions.box.embed.\1"),
        (r"model\.decoder\.ref_anchor_head\.(.+)", r"decoder.positions.box.size.\1"),
        (r"model\.query_refpoint_embeddings\.weight", r"queries.anchors"),
        (r"model\.patterns\.weight", r"queries.patterns"),
    ),
    repeats=((r"model\.decoder\.bbox_embed\.(.+)", r"bbox_predictor.\1"),),
    prepare=_prepare_dab,
    of="dab_detr",
    mark=r"model\.query_refpoint_embeddings\.weight",
    settings=dab_detr,
    model_type="dab-detr",
    nearest=dab_detr_recipe,
)

_SAMPLING = r"(sampling_offsets|attention_weights)\.(.+)"

TRANSFORMERS_DEFORMABLE_DETR = Family(
    rules=(
        *BACKBONE_AND_LAYERS,
        *PLAIN_SELF_ATTENTION,
        (r"model\.input_proj\.(.+)", r"encoder.inputs.projections.\1"),
        (r"model\.level_embed", r"encoder.inputs.vectors"),
        (_ENCODER + r"self_attn\." + _SAMPLING, r"encoder.layers.\1.self_attention.\2.\3"),
        (_ENCODER + r"self_attn\.value_proj\.(.+)", r"encoder.layers.\1.self_attention.value.\2"),
        (_ENCODER + r"self_attn\.output_proj\.(.+)", r"encoder.layers.\1.self_attention.out.\2"),
        (_DECODER + r"encoder_attn\." + _SAMPLING, _CROSS + r"attention.\2.\3"),
        (_DECODER + r"encoder_attn\.value_proj\.(.+)", _CROSS + r"attention.value.\2"),
        (_DECODER + r"encoder_attn\.output_proj\.(.+)", _CROSS + r"attention.out.\2"),
        (r"class_embed\.(\d+)\.(.+)", r"decoder.head.classes.\1.layers.0.\2"),
        (r"bbox_embed\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
        # With two stages the head after the decoder's is the encoder's.
        (r"class_embed\.\d+\.(.+)", r"queries.proposals.head.classes.0.layers.0.\1"),
        (r"bbox_embed\.\d+\.(.+)", r"queries.proposals.head.offset_heads.box.0.\1"),
        (r"model\.query_position_embeddings\.weight", r"queries.table"),
        (r"model\.reference_points\.(.+)", r"queries.point.\1"),
        (r"model\.enc_output\.(.+)", r"queries.proposals.project.\1"),
        (r"model\.enc_output_norm\.(.+)", r"queries.proposals.norm.\1"),
        (r"model\.pos_trans\.(.+)", r"queries.place.\1"),
        (r"model\.pos_trans_norm\.(.+)", r"queries.norm.\1"),
    ),
    repeats=(
        (r"model\.decoder\.((?:class_embed|bbox_embed)\..+)", r"\1"),
        (r"(class_embed|bbox_embed)\.[1-9]\d*\.(.+)", r"\1.0.\2"),
    ),
    prepare=_prepare_deformable,
    of="deformable_detr",
    mark=r"model\.level_embed",
    settings=deformable_detr,
    model_type="deformable_detr",
    nearest=deformable_detr_recipe,
)
