"""The images on which a detector does worst and best, drawn with the truth beside what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from detrkit.data import Dataset
from detrkit.drawing.predictions import draw_predictions
from detrkit.drawing.saving import picture_bytes
from detrkit.evaluation.at_threshold import Tally

WIDTH = 1400  # pixels of a picture on the page at most


def worst_and_best(tallies: Mapping[int, Tally], count: int) -> tuple[list[int], list[int]]:
    """Ids of `count` images each by F1, worst and best first, no image in both.

    Of equal ones that with more mistakes is the worse, and that with more objects the better.
    """
    rated = [(tally.f1, tally, image_id) for image_id, tally in tallies.items() if tally.f1 is not None]
    falling = sorted(rated, key=lambda one: (one[0], -one[1].wrong - one[1].missed, one[2]))
    worst = [image_id for f1, _, image_id in falling[:count] if f1 < 1]
    rising = sorted(rated, key=lambda one: (-one[0], -one[1].right, one[2]))
    return worst, [image_id for f1, _, image_id in rising[:count] if f1 > 0 and image_id not in worst]


def draw_image(
    dataset: Dataset, image_id: int, detections: Sequence[Mapping], names: Sequence[str], threshold: float
) -> bytes:
    """A JPEG: the image with its truth, and with its detections and their points.

    Args:
        detections: COCO results of this image, perhaps with points
        names: by label

    Raises:
        DataError: the image cannot be read
    """
    image, boxes, labels = dataset.read(dataset.image_ids.tolist().index(image_id))
    label_of = {category.id: label for label, category in enumerate(dataset.labels.categories)}
    found = [one for one in detections if one["score"] >= threshold]
    prediction = {
        "scores": torch.tensor([one["score"] for one in found]),
        "labels": torch.tensor([label_of[one["category_id"]] for one in found], dtype=torch.long),
        "boxes": torch.tensor([_corners(one["bbox"]) for one in found]).reshape(-1, 4),
    }
    if found and all("point" in one for one in found):
        prediction["points"] = torch.tensor([one["point"] for one in found])
    truth = {"labels": torch.from_numpy(labels), "boxes": torch.from_numpy(boxes)}
    picture = draw_predictions(image, prediction, names, truth=truth, threshold=threshold, points=True)
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    return picture_bytes(picture, "JPEG", quality=85)


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]
