"""Boxes of segmentations, for annotations that have a mask and no box."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

FAR = 4  # sides of an image, beyond which a polygon is cut for its area


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
            x, y, w, h = (float(side) for side in coco_masks.toBbox(runs))
            if x + w > width or y + h > height:  # more pixels than the image has
                return None
            return [x, y, w, h], float(coco_masks.area(runs))
        corners = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        if not corners or any(len(polygon) < 3 or not np.isfinite(polygon).all() for polygon in corners):
            return None
        # An edge takes memory by its length, and a very long one ends the process.
        reach = FAR * max(height, width)
        near = [polygon.clip(-reach, reach).ravel().tolist() for polygon in corners]
        area = coco_masks.area(coco_masks.merge(coco_masks.frPyObjects(near, height, width)))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
    return [*low.tolist(), *(high - low).tolist()], float(area)
