"""mmdetection's parameter names for DINO, as DDQ-DETR has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from detrkit.zoo.names import Family, one_label_more

_ENCODER, _THEIRS = r"encoder\.layers\.(\d+)\.", r"encoder.layers.\1."
_DECODER, _OURS = r"decoder\.layers\.(\d+)\.", r"decoder.layers.\1."
_LABELS = "dn_query_generator.label_embedding.weight"
_BRANCHES = re.compile(r"bbox_head\.(cls|reg)_branches\.(\d+)\.(.+)")


def _deformable(start: str, ours: str) -> Iterator[tuple[str, str]]:
    """Rules for deformable attention, after `start`, which captures the layer."""
    yield start + r"((?:sampling_offsets|attention_weights)\..+)", ours + r"\2"
    yield start + r"value_proj\.(.+)", ours + r"value.\2"
    yield start + r"output_proj\.(.+)", ours + r"out.\2"


def _layer(start: str, ours: str) -> Iterator[tuple[str, str]]:
    """Rules for what encoder and decoder layers have besides attention."""
    yield start + r"ffn\.layers\.0\.0\.(.+)", ours + r"feedforward.linear1.\2"
    yield start + r"ffn\.layers\.1\.(.+)", ours + r"feedforward.linear2.\2"
    for index in range(3):
        yield start + rf"norms\.{index}\.(.+)", ours + rf"norm{index + 1}.\2"


def _heads(cls: str, reg: str, ours: str, index: str, rest: int) -> Iterator[tuple[str, str]]:
    """Rules for class heads, a linear layer, and box heads, three linear layers with ReLU between.

    Args:
        cls, reg: patterns before the rest of a name.
        ours: the head's name.
        index: which layer's it is there.
        rest: the group of the pattern that the rest is.
    """
    yield cls + r"(.+)", rf"{ours}.classes.{index}.layers.0.\{rest}"
    for place in range(3):
        yield reg + rf"{2 * place}\.(.+)", rf"{ours}.offset_heads.box.{index}.layers.{place}.\{rest}"


def _prepare(official: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """One label more; the two heads after the decoder's, which are the encoder's, under names that say so."""
    state = dict(one_label_more(official, _LABELS))
    branches = {name: match for name in state if (match := _BRANCHES.fullmatch(name))}
    last = max((int(match[2]) for match in branches.values()), default=0)
    places = {str(last - 1): "encoder", str(last): "dense"}
    for name, match in branches.items():
        if match[2] in places:
            state[f"bbox_head.{places[match[2]]}_{match[1]}_branch.{match[3]}"] = state.pop(name)
    return state


MMDETECTION_DINO = Family(
    rules=(
        (r"backbone\.((?:conv1|bn1|layer\d)\..+)", r"backbone.body.\1"),
        (r"neck\.convs\.(\d+)\.conv\.(.+)", r"encoder.inputs.projections.\1.0.\2"),
        (r"neck\.convs\.(\d+)\.gn\.(.+)", r"encoder.inputs.projections.\1.1.\2"),
        *(
            (rf"neck\.extra_convs\.0\.{kind}\.(.+)", rf"encoder.inputs.projections.{levels}.{place}.\1")
            for levels in (3, 4)
            for place, kind in enumerate(("conv", "gn"))
        ),
        (r"level_embed", "encoder.inputs.vectors"),
        *_deformable(_ENCODER + r"self_attn\.", _THEIRS + "self_attention."),
        *_layer(_ENCODER, _THEIRS),
        (_DECODER + r"self_attn\.attn\.(.+)", _OURS + r"self_attention.attention.\2"),
        *_deformable(_DECODER + r"cross_attn\.", _OURS + "cross_attention.attention."),
        *_layer(_DECODER, _OURS),
        (r"decoder\.norm\.(.+)", r"decoder.norm.\1"),
        (r"decoder\.ref_point_head\.(.+)", r"decoder.positions.box.embed.\1"),
        (r"memory_trans_fc\.(.+)", r"queries.proposals.project.\1"),
        (r"memory_trans_norm\.(.+)", r"queries.proposals.norm.\1"),
        (r"query_map\.(.+)", r"queries.content.\1"),
        (r"dn_query_generator\.label_embedding\.weight", "blocks.denoising.labels"),
        *_heads(r"bbox_head\.cls_branches\.(\d+)\.", r"bbox_head\.reg_branches\.(\d+)\.", "decoder.head", r"\1", 2),
        *_heads(
            r"bbox_head\.aux_cls_branches\.(\d+)\.",
            r"bbox_head\.aux_reg_branches\.(\d+)\.",
            "decoder.second_head",
            r"\1",
            2,
        ),
        *_heads(
            r"bbox_head\.encoder_cls_branch\.", r"bbox_head\.encoder_reg_branch\.", "queries.proposals.head", "0", 1
        ),
        *_heads(r"bbox_head\.dense_cls_branch\.", r"bbox_head\.dense_reg_branch\.", "queries.second.head", "0", 1),
    ),
    repeats=((r"decoder\.(aux_reg_branches\..+)", r"bbox_head.\1"),),
    prepare=_prepare,
    coco_classes=80,
    of="dino",
    mark=r"bbox_head\.aux_cls_branches\.\d+\..+",
)
