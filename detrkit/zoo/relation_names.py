"""Relation-DETR's parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from detrkit.zoo.deformable_names import DEFORMABLE_TRANSFORMER
from detrkit.zoo.names import Config, Family, Setting, one_label_more

_RELATION = "transformer.decoder.position_relation_embedding.pos_proj.0.weight"
_LABELS = "denoising_generator.label_encoder.weight"
_PROPOSALS, _SECOND = "queries.proposals.head.", "queries.second.head."
_CLASS, _BOX = r"classes.0.layers.0.\1", r"offset_heads.box.0.\1"


def _prepare(official: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The relation's 1 x 1 convolution as a linear layer, one label more, and no list of the classes' names."""
    state = {name: tensor for name, tensor in official.items() if name != "_classes_"}
    if _RELATION in state and state[_RELATION].ndim == 4:
        state[_RELATION] = state[_RELATION].flatten(1)
    return one_label_more(state, _LABELS)


def _settings(config: Config | None) -> Sequence[Setting]:
    why = "Relation-DETR's code codes the places of a map's cells so"
    return (Setting("position.temperature", 10000, why), Setting("position.offset", -0.5, why))


RELATION_DETR_DINO = Family(
    rules=(
        (r"backbone\.((?:conv1|bn1|layer\d)\..+)", r"backbone.body.\1"),
        (r"neck\.convs\.(.+)", r"encoder.inputs.projections.\1"),
        (r"transformer\.level_embeds", "encoder.inputs.vectors"),
        (r"transformer\.encoder\.memory_fusion\.0\.(.+)", r"encoder.fusion.project.layers.0.\1"),
        (r"transformer\.encoder\.memory_fusion\.2\.(.+)", r"encoder.fusion.project.layers.1.\1"),
        (r"transformer\.encoder\.memory_fusion\.3\.(.+)", r"encoder.fusion.norm.\1"),
        *DEFORMABLE_TRANSFORMER,
        (r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.positions.box.embed.\1"),
        (r"transformer\.decoder\.query_scale\.(.+)", r"decoder.content_scale.\1"),
        (
            r"transformer\.decoder\.position_relation_embedding\.pos_proj\.0\.(.+)",
            r"decoder.positions.relation.project.\1",
        ),
        (r"transformer\.decoder\.class_head\.(\d+)\.(.+)", r"decoder.head.classes.\1.layers.0.\2"),
        (r"transformer\.decoder\.bbox_head\.(\d+)\.(.+)", r"decoder.head.offset_heads.box.\1.\2"),
        (r"transformer\.encoder_class_head\.(.+)", _PROPOSALS + _CLASS),
        (r"transformer\.encoder_bbox_head\.(.+)", _PROPOSALS + _BOX),
        (r"transformer\.hybrid_class_head\.(.+)", _SECOND + _CLASS),
        (r"transformer\.hybrid_bbox_head\.(.+)", _SECOND + _BOX),
        (r"transformer\.tgt_embed\.weight", "queries.content"),
        (r"transformer\.hybrid_tgt_embed\.weight", "queries.second_content"),
        (r"denoising_generator\.label_encoder\.weight", "blocks.denoising.labels"),
    ),
    prepare=_prepare,
    of="dino",
    mark=r"transformer\.decoder\.position_relation_embedding\..+",
    settings=_settings,
)
