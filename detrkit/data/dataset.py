"""A split of a data set, and the source that holds both splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch.utils import data

from detrkit.data.batch import Example, to_pixels
from detrkit.data.loader import Loader, SampleKey, WorkerPool, plan_batches
from detrkit.data.records import Category, Fault, Labels, Records
from detrkit.data.transforms import Augment, Sample, make_sample
from detrkit.errors import DataError, UserError
from detrkit.recipe import define_slot

Split = Literal["train", "val"]
_SAMPLE = 2  # keeps the samples' generators apart from the order's (see loader.py)
_CHOSEN = 5  # and from those by which its augmentation is chosen
_COMBINED = 6  # and it is combined with others


def require_split(name: str) -> None:
    """Raise UserError if there is no split of that name."""
    if name not in get_args(Split):
        raise UserError(f"split is {name!r}; accepted are 'train' and 'val'")


class Dataset(data.Dataset, ABC):
    """One split: ``dataset[SampleKey(index, epoch, seed)]`` is an ``Example``, ready for a batch.

    In training the sample is augmented by generators seeded from its key alone; otherwise ``epoch`` and ``seed`` change
    nothing. A plain ``(index, epoch)`` serves as a key too.
    """

    reduced = False
    """whether files may be decoded with fewer pixels, where they are resized to much less"""
    way_past = ""
    """what may be done about an image that cannot be read, at the end of the message"""

    def __init__(self, *, split: Split, labels: Labels, augment: Augment):
        self.split = split
        self.labels = labels
        self.augment = augment

    @property
    @abstractmethod
    def records(self) -> Records:
        """The split's images and annotations as flat arrays."""

    @property
    @abstractmethod
    def faults(self) -> list[Fault]:
        """What is wrong with the split's annotations."""

    @property
    @abstractmethod
    def real_categories(self) -> tuple[Category, ...]:
        """The categories that the split knows, without placeholders."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        """The image as RGB, its boxes [T, 4] (x1, y1, x2, y2) inside it, and their labels [T]; no crowds."""

    def sample(self, index: int, wanted: tuple[int, int] | None) -> Sample:
        """The image with its objects. Its pixels may have the size ``wanted`` (height, width), to which they come."""
        return make_sample(*self.read(index))

    def instead_of(self, index: int) -> int | None:
        """The image that is used where this one cannot be read; None: nothing is, the error ends the run."""
        return None

    def blank(self, index: int, skipped: str) -> Example:
        """A black image of the size of one that cannot be read, so that an evaluation finds nothing on it."""
        height, width = self.records.sizes[index].tolist()
        black = Image.new("RGB", (width, height))
        return Example.without_truth(self.augment.evaluate(black), self.image_id(index), (height, width), skipped)

    @property
    def missing_files(self) -> list[tuple[int, Path]]:
        """Image id and path of each image whose file is not there; none for images that are made."""
        return []

    @property
    def image_ids(self) -> np.ndarray:
        """[I] int64, in the order of the indices."""
        return self.records.image_ids

    def image_id(self, index: int) -> int:
        """The id of one image."""
        return int(self.image_ids[index])

    def ground_truth(self) -> COCO:
        """What the evaluation compares with: original ids, crowd regions included."""
        return self.records.ground_truth(self.real_categories)

    def training_sizes(self, epoch: int, seed: int) -> np.ndarray:
        """[I, 2] int64, the height and the width that each image will have in a training's epoch, the first time."""
        keys = [SampleKey(index, epoch, seed) for index in range(len(self))]
        sizes = [
            self._chosen(key).size(height, width, _generator(key))
            for key, (height, width) in zip(keys, self.records.sizes.tolist(), strict=True)
        ]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def __getitem__(self, key: SampleKey | tuple[int, ...]) -> Example:
        if isinstance(key, int | np.integer):
            raise UserError(
                f"image {key} is asked for by its index alone, and each epoch augments anew: ask for (index, epoch); "
                "loader(split=..., batch_size=..., epoch=...) of the data source gives batches"
            )
        key, sample, skipped = self._readable(SampleKey(*key))
        if sample is None:
            return self.blank(key.index, skipped)
        size = sample.size
        image = sample.image
        if self.split == "train":
            sample, missed = self._augmented(sample, key)
            image, skipped = sample.image, skipped or missed
        elif (image.height, image.width) != self._wanted(key):
            image = self.augment.evaluate(image)  # the sample's relative boxes stay true when the image is resized
        return Example(to_pixels(image), relative(sample), sample.labels, self.image_id(key.index), size, skipped)

    def _wanted(self, key: SampleKey, augment: Augment | None = None) -> tuple[int, int] | None:
        """(height, width) that an image will be resized to at first; None: all of its pixels are to be read.

        `augment`: which one resizes it, where that is not the sample's own.
        """
        if not self.reduced:
            return None
        height, width = self.records.sizes[key.index].tolist()
        if self.split == "train":
            return (augment or self._chosen(key)).first_size(height, width, _generator(key))
        return self.augment.evaluation_size(height, width)

    def _readable(self, key: SampleKey, augment: Augment | None = None) -> tuple[SampleKey, Sample | None, str]:
        """The sample of an image, or in training of the one instead of it; its key, and what could not be read."""
        skipped = ""
        for _ in range(len(self)):
            try:
                return key, self.sample(key.index, self._wanted(key, augment)), skipped
            except DataError as error:
                skipped = skipped or str(error)
                instead = self.instead_of(key.index)
                if instead is None:
                    raise DataError(f"{error}{self.way_past}") from error
                if self.split != "train":
                    return key, None, skipped
                key = key._replace(index=instead)
        raise DataError(f"not one of the {len(self)} training images can be read; the first: {skipped}")

    def _augmented(self, sample: Sample, key: SampleKey) -> tuple[Sample, str]:
        """The sample as the training has it, and what could not be read of the others that it is combined with."""
        augment, skipped = self._chosen(key), ""
        if augment.others:
            rng, others = _generator(key, kind=_COMBINED), list[Sample]()
            for other in rng.integers(len(self), size=augment.others).tolist():
                _, read, missed = self._readable(key._replace(index=other), augment)
                others += [] if read is None else [read]
                skipped = skipped or missed
            sample = augment.combine(sample, others, rng)
        return augment.train(sample, _generator(key)), skipped

    def _chosen(self, key: SampleKey) -> Augment:
        """The augmentation that a sample has in an epoch."""
        if type(self.augment).chosen is Augment.chosen:
            return self.augment  # a generator takes longer than all else when an epoch is planned
        return self.augment.chosen(key.epoch, _generator(key, kind=_CHOSEN))


def _generator(key: SampleKey, kind: int = _SAMPLE) -> np.random.Generator:
    again = [key.repeat] if key.repeat else []
    return np.random.default_rng([kind, key.seed, key.epoch, key.index, *again])


def relative(sample: Sample) -> torch.Tensor:
    """The boxes [T, 4] as (cx, cy, w, h) in [0, 1] of the image."""
    boxes = sample.boxes.as_subclass(torch.Tensor)
    low, high = boxes[:, :2], boxes[:, 2:]
    scale = torch.tensor(sample.size[::-1], dtype=torch.float32)
    return torch.cat([(low + high) / 2 / scale, (high - low) / scale], dim=1)


class DataSource(ABC):
    """A data set with its two splits, opened when first asked for; what fills the slot ``data``."""

    repeat_threshold: float = 0.0
    """share of the images below which a class is rare, and images with it are seen more often; 0: all alike"""
    size_pool: int = 0
    """batches whose images are drawn together in training, and divided by their sizes; 0: batches are drawn"""

    def __init__(self, *, augment: Augment):
        self.augment = augment
        self._pools: dict[tuple[str, int], WorkerPool] = {}

    @property
    @abstractmethod
    def labels(self) -> Labels:
        """Category ids to labels and back."""

    def describe(self) -> str:
        """What was found, in a line; "" where there is nothing to say."""
        return ""

    @abstractmethod
    def open(self, split: Split) -> Dataset:
        """Read a split; ``DataError`` where its files are missing or cannot be used."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """Label i is ``categories[i]``; detections are written with ``categories[i].id``."""
        return self.labels.categories

    @cached_property
    def train(self) -> Dataset:
        return self.open("train")

    @cached_property
    def val(self) -> Dataset:
        return self.open("val")

    def loader(
        self,
        *,
        split: Split = "train",
        batch_size: int,
        epoch: int = 0,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        skip: int = 0,
    ) -> Loader:
        """The batches of one epoch, for one of ``world`` processes; the first ``skip`` are left out.

        ``train`` is shuffled and loses an incomplete last batch (unless it is the only one); ``val`` has
        every image once. The same arguments give the same batches, whatever the number of workers.
        """
        require_split(split)
        dataset = self.train if split == "train" else self.val
        weights = None
        if split == "train" and self.repeat_threshold:
            weights = dataset.records.repeat_factors(self.repeat_threshold)
        batches = plan_batches(
            len(dataset),
            batch_size,
            train=split == "train",
            epoch=epoch,
            seed=seed,
            rank=rank,
            world=world,
            weights=weights,
            sizes=dataset.training_sizes(epoch, seed) if split == "train" and self.size_pool else None,
            pool=self.size_pool,
        )
        pool = self._pools.setdefault((split, workers), WorkerPool(dataset, workers))
        return Loader(pool, batches, epoch=epoch, seed=seed, skip=skip)


define_slot("data", offers=(), base=DataSource)
