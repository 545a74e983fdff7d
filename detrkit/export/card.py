"""What an exported file says of itself, in its metadata under the key "detrkit", as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detrkit.data import Category
from detrkit.data.choosing import evaluated_at
from detrkit.data.transforms import Augment
from detrkit.detections import DetectOptions
from detrkit.errors import CheckpointError, UserError
from detrkit.export.form import Form
from detrkit.pixels import MEAN, STD
from detrkit.recipe.overrides import plain
from detrkit.recipe.registry import load_registered_parts, parts
from detrkit.trained import Trained

KEY = "detrkit"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Card:
    """What whoever runs the file needs to know."""

    title: str
    """of the recipe"""
    form: Form
    outputs: tuple[str, ...]
    """names, by order"""
    categories: tuple[Category, ...]
    """label i is the i-th"""
    resize: Mapping[str, Any]
    """how an image is resized: a table like the recipe's data.augment, of which `evaluate` alone is done"""
    detect: DetectOptions
    """how predictions become detections"""
    mean: tuple[float, ...] = MEAN
    """of RGB in [0, 1], that images are normalised with"""
    std: tuple[float, ...] = STD
    """the deviation likewise"""
    version: int = field(default=VERSION)

    @classmethod
    def of(cls, trained: Trained, form: Form, outputs: tuple[str, ...]) -> Card:
        """The card of a trained detector."""
        recipe = trained.recipe
        resize = plain(recipe.section("data").parts["augment"])
        for key in evaluated_at(resize):
            resize = resize[key]
        return cls(
            title=recipe.title or recipe.name,
            form=form,
            outputs=outputs,
            categories=trained.categories,
            resize=resize,
            detect=recipe.section("detect"),
        )

    def to_json(self) -> str:
        """As it stands in a file: UTF-8, with what that has not, halves of letters in a class's name, as \\udcff."""
        return json.dumps(asdict(self), ensure_ascii=False).encode(errors="backslashreplace").decode()

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Card:
        """What `to_json` wrote. Raises CheckpointError if it did not, or a later version did."""
        if text is None:
            raise CheckpointError(f'{path} was not written by `detrkit export`: its metadata has no "{KEY}"')
        try:
            said = json.loads(text)
            if said["version"] != VERSION:
                raise CheckpointError(
                    f"{path} was written by another version of detrkit (format {said['version']}, here {VERSION}); "
                    "export it again"
                )
            return cls(
                title=said["title"],
                form=Form(**said["form"]),
                outputs=tuple(said["outputs"]),
                categories=tuple(Category(**one) for one in said["categories"]),
                resize=said["resize"],
                detect=DetectOptions(**said["detect"]),
                mean=tuple(said["mean"]),
                std=tuple(said["std"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f'{path}: its metadata "{KEY}" cannot be read: {error!r}') from None

    def augment(self) -> Augment:
        """The part whose `evaluate` resizes images. Raises UserError if no such part is known here."""
        load_registered_parts()
        return _built(self.resize)


def _built(said: Mapping[str, Any]) -> Augment:
    """The augmentation that a table says; a table in it says the one that it is made over."""
    name = str(said["type"])
    if name not in parts("augment"):
        raise UserError(
            f'the file was exported with images resized by augment "{name}", which is not known here; '
            "import the module that registers it before detrkit.load, or, for the command line, install it as a "
            "package (docs/own_parts.md)"
        )
    options = {key: _built(value) if isinstance(value, Mapping) else value for key, value in said.items()}
    return parts("augment")[name](
        **{key: None if value == "none" else value for key, value in options.items() if key != "type"}
    )
