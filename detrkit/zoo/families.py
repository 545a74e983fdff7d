"""Whose checkpoints can be converted."""

from __future__ import annotations

from collections.abc import Callable

from detrkit.recipe import register
from detrkit.zoo.deformable_names import DEFORMABLE_DETR, DINO
from detrkit.zoo.dense_names import ANCHOR_DETR, CONDITIONAL_DETR, DETR, SAM_DETR, SMCA_DETR
from detrkit.zoo.names import DAB_DETR, DN_DETR, SAP_DETR, Family
from detrkit.zoo.torchvision_names import TORCHVISION

FAMILIES: dict[str, Family] = {
    "anchor_detr": ANCHOR_DETR,
    "conditional_detr": CONDITIONAL_DETR,
    "dab_detr": DAB_DETR,
    "deformable_detr": DEFORMABLE_DETR,
    "detr": DETR,
    "dino": DINO,
    "dn_detr": DN_DETR,
    "sam_detr": SAM_DETR,
    "sap_detr": SAP_DETR,
    "smca_detr": SMCA_DETR,
    "torchvision": TORCHVISION,
}
"""By the names that a recipe's `detector.checkpoint_names` takes; an installed package may register more."""


def _factory(family: Family) -> Callable[[], Family]:
    return lambda: family


for _name, _family in FAMILIES.items():
    register("checkpoint_names", _name)(_factory(_family))
