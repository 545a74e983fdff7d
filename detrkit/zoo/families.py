"""Whose checkpoints can be converted."""

from __future__ import annotations

from collections.abc import Callable

from detrkit.recipe import register
from detrkit.zoo.deformable_names import DEFORMABLE_DETR, DINO
from detrkit.zoo.dense_names import ANCHOR_DETR, CONDITIONAL_DETR, DETR, SAM_DETR, SMCA_DETR
from detrkit.zoo.detrex_names import DETREX_DEFORMABLE_DETR, DETREX_DINO
from detrkit.zoo.mmdetection_names import MMDETECTION_DINO
from detrkit.zoo.names import DAB_DETR, DN_DETR, SAP_DETR, Family
from detrkit.zoo.relation_names import RELATION_DETR_DINO
from detrkit.zoo.rt_detr_names import RT_DETR, TRANSFORMERS_RT_DETR
from detrkit.zoo.torchvision_names import TORCHVISION
from detrkit.zoo.transformers_names import (
    TRANSFORMERS_CONDITIONAL_DETR,
    TRANSFORMERS_DAB_DETR,
    TRANSFORMERS_DEFORMABLE_DETR,
    TRANSFORMERS_DETR,
)

FAMILIES: dict[str, Family] = {
    "anchor_detr": ANCHOR_DETR,
    "conditional_detr": CONDITIONAL_DETR,
    "dab_detr": DAB_DETR,
    "deformable_detr": DEFORMABLE_DETR,
    "detr": DETR,
    "detrex_deformable_detr": DETREX_DEFORMABLE_DETR,
    "detrex_dino": DETREX_DINO,
    "dino": DINO,
    "dn_detr": DN_DETR,
    "mmdetection_dino": MMDETECTION_DINO,
    "relation_detr_dino": RELATION_DETR_DINO,
    "rt_detr": RT_DETR,
    "sam_detr": SAM_DETR,
    "sap_detr": SAP_DETR,
    "smca_detr": SMCA_DETR,
    "torchvision": TORCHVISION,
    "transformers_conditional_detr": TRANSFORMERS_CONDITIONAL_DETR,
    "transformers_dab_detr": TRANSFORMERS_DAB_DETR,
    "transformers_deformable_detr": TRANSFORMERS_DEFORMABLE_DETR,
    "transformers_detr": TRANSFORMERS_DETR,
    "transformers_rt_detr": TRANSFORMERS_RT_DETR,
}
"""By the names that a recipe's `detector.checkpoint_names` takes; an installed package may register more, of other
systems, or of these in another code's names (`Family.of`).
"""


def _factory(name: str, family: Family) -> Callable[[], Family]:
    def make() -> Family:
        return family

    if family.of:
        code = name.removesuffix(f"_{family.of}")
        make.__doc__ = f"The names of the package {code}; recipes that say `{family.of}` take its checkpoints too."
    else:
        make.__doc__ = f"The names in checkpoints of `{name}`, as the official code writes them."
    return make


for _name, _family in FAMILIES.items():
    register("checkpoint_names", _name)(_factory(_name, _family))
