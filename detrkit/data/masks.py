"""Boxes of segmentations, for annotations that have a mask and no box."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_masks


def box_of_mask(segmentation: Any, size: np.ndarray) -> tuple[list[float], float] | None:
    """The box (x, y, w, h) around a segmentation, and its area, in pixels.

    Args:
        segmentation: polygons [[x0, y0, x1, y1, ...], ...], or run lengths {"size": [h, w], "counts": [...] or text}.
        size: (height, width) of the image.

    Returns:
        None where it is neither. A box of polygons follows their corners exactly; one of run lengths, whole pixels.
    """
    height, width = (int(side) for side in size)
    try:
        if isinstance(segmentation, dict):
            runs = dict(segmentation)
            if isinstance(runs["counts"], list):
                runs = coco_masks.frPyObjects(runs, *runs["size"])
            if list(runs["size"]) != [height, width]:
                return None
            return [float(x) for x in coco_masks.toBbox(runs)], float(coco_masks.area(runs))
        corners = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        if not corners or any(len(polygon) < 3 or not np.isfinite(polygon).all() for polygon in corners):
            return None
        area = coco_masks.area(coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width)))
    except (KeyError, TypeError, ValueError):
        return None
    low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
    return [*low.tolist(), *(high - low).tolist()], float(area)
