"""Whose checkpoints can be converted."""

from __future__ import annotations

from detrkit.zoo.deformable_names import DEFORMABLE_DETR, DINO
from detrkit.zoo.names import DAB_DETR, DN_DETR, SAP_DETR, Family

FAMILIES: dict[str, Family] = {
    "dab_detr": DAB_DETR,
    "deformable_detr": DEFORMABLE_DETR,
    "dino": DINO,
    "dn_detr": DN_DETR,
    "sap_detr": SAP_DETR,
}
"""By the recipe's `detector.checkpoint_names`."""
