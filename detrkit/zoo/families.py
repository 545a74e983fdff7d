"""Whose checkpoints can be converted."""

from __future__ import annotations

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
"""By the recipe's `detector.checkpoint_names`."""
