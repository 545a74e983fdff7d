"""Two data sets compared: by what their images hold, in whatever format they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detrkit.data.auto_source import AutoSource
from detrkit.data.transforms import NoAugment

from .conftest import part


def auto(root, **options):
    return AutoSource(root=str(root), augment=part(NoAugment), **options)


def truth(dataset):
    """Image name -> (class, box in shares of the image, ignored) in the files' order, whatever ids the format has."""
    names = {category.id: category.name for category in dataset.real_categories}
    records, found = dataset.records, {}
    for index in range(len(dataset)):
        rows = records.of_image(index)
        height, width = records.sizes[index].tolist()
        shares = records.boxes[rows] / [width, height, width, height]
        labels = [names[number] for number in records.category_ids[rows].tolist()]
        found[Path(str(records.file_names[index])).name] = list(
            zip(labels, shares.tolist(), records.crowd[rows].tolist(), strict=True)
        )
    return found


def same(first, second, limit=1e-6):
    assert first.keys() == second.keys()
    for name, objects in first.items():
        assert [(o[0], o[2]) for o in objects] == [(o[0], o[2]) for o in second[name]], name
        ours, theirs = (np.array([o[1] for o in each]).reshape(-1, 4) for each in (objects, second[name]))
        assert np.abs(ours - theirs).max(initial=0) <= limit, name
