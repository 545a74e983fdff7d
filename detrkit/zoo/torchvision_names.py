"""torchvision's Faster R-CNN checkpoints.

Three things are their own. A class table has a row for the background and one for each of COCO's ids up to 90, ten of
which no class has; the recipe's tables have a row for the background and one a class. The published file is older than
torchvision 0.13 and has that time's names. And it was trained with frozen norms that add no epsilon to the variance,
which torchvision makes up for by setting theirs to 0 when it loads that file; here the variance is lessened by ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detrkit.zoo.names import COCO_NAMES, COCO_SLOTS, Family

EPSILON = 1e-5  # of timm's frozen norms
CLASS_TABLES = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")


def _prepare(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint with one row a class, and variances to which epsilon is added."""
    state = dict(official)
    for table in CLASS_TABLES:
        for name in (f"{table}.weight", f"{table}.bias"):
            rows = state[name].shape[0] if name in state and state[name].ndim else 0
            if rows and rows % COCO_SLOTS == 0:
                kept = torch.tensor([0, *COCO_NAMES])
                state[name] = state[name].unflatten(0, (COCO_SLOTS, -1))[kept].flatten(0, 1)
    if "rpn.head.conv.weight" in state:  # a name of the time before epsilon
        for name in [name for name in state if name.endswith("running_var")]:
            state[name] = (state[name].double() - EPSILON).to(state[name].dtype)
    return state


TORCHVISION = Family(
    rules=(
        (r"backbone\.body\.(.+)", r"backbone.body.\1"),
        (r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"pyramid.\1_blocks.\2.0.\3"),
        (r"rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)", r"proposals.head.conv.0.0.\1"),
        (r"rpn\.head\.((?:cls_logits|bbox_pred)\..+)", r"proposals.head.\1"),
        (r"roi_heads\.(.+)", r"regions.\1"),
    ),
    prepare=_prepare,
    coco_classes=len(COCO_NAMES),
)
