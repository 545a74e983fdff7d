"""Data part ``shapes``: figures drawn on the fly from a seed. No files, no download, no waiting.

Boxes enclose what is *visible* of a figure, as a person who annotates photographs would draw them. Figures
of which less than 30 % or fewer than 9 pixels can be seen are not drawn at all, so that nothing in a
picture lacks its box.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, get_args

import numpy as np
from PIL import Image
from pydantic import Field

from detrkit.data.dataset import Dataset, DataSource, Split
from detrkit.data.figures import FIGURES, Layout, Scene, lay_out, paint
from detrkit.data.records import Category, Fault, Labels, Records
from detrkit.data.transforms import Augment
from detrkit.errors import DataError
from detrkit.recipe import Given, Slot, as_factory, register

FigureName = Literal["circle", "square", "triangle", "star", "ring", "cross", "bar", "crescent"]
Share = Annotated[float, Field(ge=0, le=1)]
assert get_args(FigureName) == tuple(FIGURES)

_SPLITS: dict[Split, int] = {"train": 0, "val": 1}
_LAYOUT, _PAINT = 3, 4  # generators of their own, so that a scene is known without painting it
_LEAST_SIDE = 32
Side = Annotated[int, Field(ge=_LEAST_SIDE, le=10_000)]
Objects = Annotated[int, Field(ge=0, le=10_000)]


class ShapesDataset(Dataset):
    """One split of drawn images. Image ids are the indices plus one, category ids the labels plus one."""

    def __init__(self, *, split: Split, labels: Labels, augment: Augment, layout: Layout, images: int, seed: int):
        super().__init__(split=split, labels=labels, augment=augment)
        self.layout = layout
        self.images = images
        self.seed = seed

    def __len__(self) -> int:
        return self.images

    def image_id(self, index: int) -> int:
        return index + 1

    faults = property(lambda self: list[Fault]())
    real_categories = property(lambda self: self.labels.categories)

    def scene(self, index: int) -> Scene:
        """What is in an image, without painting it."""
        return lay_out(self.layout, self._rng(_LAYOUT, index))

    def read(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        scene = self.scene(index)
        boxes = np.array([figure.box for figure in scene.figures], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([figure.label for figure in scene.figures], dtype=np.int64)
        return paint(scene, self._rng(_PAINT, index)), boxes, labels

    @cached_property
    def records(self) -> Records:
        scenes = [self.scene(index) for index in range(len(self))]
        figures = [figure for scene in scenes for figure in scene.figures]
        counts = [len(scene.figures) for scene in scenes]
        return Records(
            image_ids=np.arange(1, len(self) + 1),
            sizes=np.array([(scene.height, scene.width) for scene in scenes], dtype=np.int64),
            file_names=np.array([f"{self.split}_{index:06d}.png" for index in range(1, len(self) + 1)]),
            first=np.cumsum([0, *counts]),
            annotation_ids=np.arange(1, len(figures) + 1),
            category_ids=np.array([figure.label + 1 for figure in figures], dtype=np.int64),
            boxes=np.array([figure.box for figure in figures], dtype=np.float64).reshape(-1, 4),
            areas=np.array([figure.area for figure in figures], dtype=np.float64),
            crowd=np.zeros(len(figures), dtype=bool),
        )

    def _rng(self, purpose: int, index: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self.seed, _SPLITS[self.split], index])


@register("data", "shapes")
class ShapesSource(DataSource):
    """Figures of up to eight classes on textured grounds, drawn from a seed.

    Bars are up to twelve times as long as wide. An image can have fewer figures than were tried, since hidden
    ones are left out.

    Args:
        image_size: the side of square images in pixels, or a range [least, most] from which height and width are
            drawn for each image.
        train_images, val_images: how many images a split has.
        classes: names of the figures.
        objects: range of the number of figures tried.
        sizes: range of a figure's diameter as a share of the image's shorter side.
        small_fraction: share of the figures that come from the lower half of that range, on a logarithmic scale.
        touching: share of the figures that are put beside the one before, so that they touch or overlap.
        textured: share of the figures that have a texture (plain, graded, striped, chequered or cloudy) rather than
            one colour; grounds always do.
        hue_by_class: give every class a hue of its own, which makes classes easy to tell. Without it colours tell
            nothing, and only the outline does.
        seed: another seed gives other images.
        size_pool: batches whose images are drawn together in training, and divided into batches by their sizes; 0:
            batches are drawn image by image.
        augment: of the training images.
    """

    def __init__(
        self,
        *,
        image_size: Side | tuple[Side, Side] = 160,
        train_images: Annotated[int, Field(ge=1, le=10_000_000)] = 2000,
        val_images: Annotated[int, Field(ge=1, le=10_000_000)] = 300,
        classes: Annotated[tuple[FigureName, ...], Field(min_length=1)] = get_args(FigureName),
        objects: tuple[Objects, Objects] = (1, 10),
        sizes: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.07, 0.7),
        small_fraction: Share = 0.5,
        touching: Share = 0.35,
        textured: Share = 1.0,
        hue_by_class: bool = False,
        seed: Annotated[int, Field(ge=0)] = 0,
        size_pool: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
        augment: Annotated[Given, Slot("augment")] = "flip",
    ):
        super().__init__(augment=as_factory("augment", augment)())
        self.size_pool = size_pool
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        for key, (low, high) in (("image_size", sides), ("objects", objects), ("sizes", sizes)):
            if low > high:
                raise DataError(f"{key} is [{low}, {high}], must be [least, most]")
        if len(set(classes)) != len(classes):
            raise DataError(f"classes is {list(classes)}, which names a class twice")
        self._layout = Layout(
            names=tuple(classes),
            sides=sides,
            square=isinstance(image_size, int),
            objects=objects,
            sizes=sizes,
            small_fraction=small_fraction,
            touching=touching,
            textured=textured,
            hue_by_class=hue_by_class,
        )
        self._images = {"train": train_images, "val": val_images}
        self._seed = seed
        self._labels = Labels([Category(i, name) for i, name in enumerate(classes, start=1)])

    labels = property(lambda self: self._labels)

    def open(self, split: Split) -> ShapesDataset:
        return ShapesDataset(
            split=split,
            labels=self._labels,
            augment=self.augment,
            layout=self._layout,
            images=self._images[split],
            seed=self._seed,
        )
