"""Images that stand in a data set more than once, in one split or in both: by all bytes of their files."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detrkit.data.file_dataset import FileDataset
from detrkit.data.records import Fault


def same_images(datasets: Mapping[str, FileDataset]) -> dict[str, list[Fault]]:
    """Of each split, a fault for each image whose file is the same as that of another one before it.

    Splits are taken in their order, so that an image of `val` that `train` has, too, is a fault of `val`: what is
    learned by heart there counts as found.

    Args:
        datasets: splits by name.
    """
    by_size: dict[int, list[tuple[str, int, Path]]] = defaultdict(list)
    for split, dataset in datasets.items():
        for index in range(len(dataset)):
            path = dataset.image_path(index)
            try:
                by_size[os.path.getsize(path)].append((split, index, path))
            except (OSError, ValueError):  # missing, which is a fault of its own
                continue
    alike = [one for group in by_size.values() if len(group) > 1 for one in group]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_digest, [path for _, _, path in alike])
    first: dict[bytes, tuple[str, str]] = {}
    faults: dict[str, list[Fault]] = {split: [] for split in datasets}
    for (split, index, _), digest in zip(alike, digests, strict=True):
        if digest is None:
            continue
        records = datasets[split].records
        name, given = str(records.file_names[index]), records.given_id(datasets[split].image_id(index))
        before, other = first.setdefault(digest, (split, name))
        if (before, other) == (split, name):
            continue
        if before == split:
            fault = Fault("same image twice", given, None, f"{name} is the same as {other}: both are used", loses=False)
        else:
            detail = f"{name} is {other} of {before}: what is learned there by heart counts as found here"
            fault = Fault(f"image of {before}", given, None, detail, loses=False)
        faults[split].append(fault)
    return faults


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None
