"""Whose checkpoints can be converted."""

from __future__ import annotations

from detrkit.zoo.dense_names import CONDITIONAL_DETR, DETR
from detrkit.zoo.names import DAB_DETR, SAP_DETR, Family

FAMILIES: dict[str, Family] = {
    "conditional_detr": CONDITIONAL_DETR,
    "dab_detr": DAB_DETR,
    "detr": DETR,
    "sap_detr": SAP_DETR,
}
"""By the recipe's `detector.checkpoint_names`."""
