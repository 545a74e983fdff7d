"""The recipe that computes what a checkpoint's own code computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.recipe import Recipe, load_recipe
from detrkit.zoo.classes import count_classes
from detrkit.zoo.names import Config, Setting
from detrkit.zoo.preprocessor import FILE as PREPROCESSOR
from detrkit.zoo.preprocessor import image_settings, is_set_by_hand
from detrkit.zoo.recognising import families_of, family_of_config, recognise


@dataclass(frozen=True)
class Fitted:
    """A recipe, and what was changed in it for a checkpoint."""

    recipe: Recipe
    settings: tuple[Setting, ...]
    """those values that the recipe had not, and those that are only assumed"""
    lost: tuple[str, ...] = ()
    """what a preprocessor does to images and detrkit does not, a sentence each"""

    def summary(self) -> str:
        """What was set and why, and what could not be, a line each."""
        told = [f"{one.key} = {_toml(one.value)}: {one.why}" for one in self.settings]
        return "\n".join([*told, *(f"not kept of {PREPROCESSOR}: {one}" for one in self.lost)])


def fit(
    official: Mapping[str, Tensor],
    recipe: Recipe | None = None,
    *,
    config: Config | None = None,
    preprocessor: Config | None = None,
    overrides: Sequence[str] = (),
) -> Fitted:
    """The recipe of a checkpoint: the one given, or the nearest by its configuration, with what it must say.

    Args:
        official: the checkpoint's tensors, as for `convert`.
        recipe: None to take the one that the configuration says.
        config: what stands in the `config.json` of the package `transformers` (`model.config.to_dict()`); None if there
            is none.
        preprocessor: what stands in the `preprocessor_config.json` beside it: how images are resized and normalised.
        overrides: `key.path=value` texts for the recipe that is found here; what they set, and what the command line
            has set in the recipe given, stays as it is.

    Raises:
        CheckpointError: no recipe is known for the configuration, it asks for what no part computes, or it is of
            another system than the names.
    """
    if recipe is None:
        if config is None:
            raise CheckpointError("without a recipe, the configuration has to say what system the checkpoint is of")
        family = family_of_config(config)
        recipe = load_recipe(family.nearest(config), overrides)
        if official and recognise(official, families_of(recipe)).family != family:
            raise CheckpointError(
                f"config.json: model_type = {family.model_type!r}, but the names are not those of that detector with "
                f"its heads: {', '.join(sorted(official)[:3])}, ... Accepted is what ...ForObjectDetection saves"
            )
    else:
        family = recognise(official, families_of(recipe)).family
    if config is not None and family.model_type and config.get("model_type", family.model_type) != family.model_type:
        raise CheckpointError(
            f"the names are those of {family.model_type!r}, but config.json is of {config['model_type']!r}"
        )
    before, lost = recipe, list[str]()
    settings = _open(recipe, family.settings(config))
    recipe = _with(recipe, settings)
    if preprocessor is not None:
        more, lost = image_settings(recipe, preprocessor)
        more = _open(recipe, more)
        recipe = _with(recipe, more)
        settings = list({one.key: one for one in (*settings, *more)}.values())
    told = tuple(one for one in settings if one.assumed or before.get(one.key, None) != one.value)
    if not is_set_by_hand(recipe, "detector.classes"):
        classes = count_classes(official, recipe)
        if classes is not None:
            recipe = recipe.with_values({"detector.classes": classes}, source="checkpoint")
    return Fitted(recipe, told, tuple(lost))


def _open(recipe: Recipe, settings: Iterable[Setting]) -> list[Setting]:
    """Those that a person has not set by hand, and that are not the recipe's model under another name."""
    free = [one for one in settings if not is_set_by_hand(recipe, one.key)]
    return [one for one in free if not (one.key == "backbone.name" and _same_model(recipe, one.value))]


def _with(recipe: Recipe, settings: Sequence[Setting]) -> Recipe:
    return recipe.with_values({one.key: one.value for one in settings}, source="checkpoint") if settings else recipe


def _same_model(recipe: Recipe, name: str) -> bool:
    """Whether the recipe's timm model is this one, whichever weights its name speaks of."""
    return str(recipe.get("backbone.name", "")).partition(".")[0] == name.partition(".")[0]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
