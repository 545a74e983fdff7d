"""The recipe that computes what a checkpoint's own code computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detrkit.data.choosing import evaluated_at
from detrkit.errors import CheckpointError
from detrkit.recipe import Recipe, load_recipe
from detrkit.recipe.overrides import COMMAND_LINE, plain
from detrkit.zoo.classes import count_classes
from detrkit.zoo.names import Config, Setting
from detrkit.zoo.recognising import families_of, family_of_config, recognise


@dataclass(frozen=True)
class Fitted:
    """A recipe, and what was changed in it for a checkpoint."""

    recipe: Recipe
    settings: tuple[Setting, ...]
    """those values that the recipe had not, and those that are only assumed"""

    def summary(self) -> str:
        """What was set and why, a line each."""
        return "\n".join(f"{one.key} = {_toml(one.value)}: {one.why}" for one in self.settings)


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
        preprocessor: what stands in the `preprocessor_config.json` beside it, of which image sizes are taken.
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
    wanted = [*family.settings(config), *_sizes(recipe, preprocessor)]
    settings = [one for one in wanted if not _is_set_by_hand(recipe, one.key)]
    settings = [one for one in settings if not (one.key == "backbone.name" and _same_model(recipe, one.value))]
    told = tuple(one for one in settings if one.assumed or recipe.get(one.key, None) != one.value)
    if settings:
        recipe = recipe.with_values({one.key: one.value for one in settings}, source="checkpoint")
    if not _is_set_by_hand(recipe, "detector.classes"):
        classes = count_classes(official, recipe)
        if classes is not None:
            recipe = recipe.with_values({"detector.classes": classes}, source="checkpoint")
    return Fitted(recipe, told)


def _sizes(recipe: Recipe, preprocessor: Config | None) -> list[Setting]:
    """How large images are made: a square, or their shorter side, and the longer one at most."""
    said = (preprocessor or {}).get("size")
    at = ".".join(("data", "augment", *evaluated_at(plain(recipe.section("data").parts["augment"]))))
    if said is None or recipe.get(f"{at}.eval_size", None) is None:
        return []
    if isinstance(said, int):  # as older files have it
        said = {"shortest_edge": said, "longest_edge": (preprocessor or {}).get("max_size", 1333)}
    why = "preprocessor_config.json"
    if {"height", "width"} <= set(said) and said["height"] == said["width"]:
        square = {f"{at}.type": "square", f"{at}.eval_size": said["height"]}
        return [Setting(key, value, why) for key, value in square.items()]
    if not {"shortest_edge", "longest_edge"} <= set(said):
        why += f" asks for {said}, which detrkit does not do; images keep their shape"
        return [Setting(f"{at}.eval_size", recipe.get(f"{at}.eval_size"), why, assumed=True)]
    keys = {f"{at}.eval_size": "shortest_edge", f"{at}.eval_max_size": "longest_edge"}
    return [Setting(key, said[edge], why) for key, edge in keys.items()]


def _is_set_by_hand(recipe: Recipe, key: str) -> bool:
    return recipe.get(key, None) is not None and recipe.source(key) == COMMAND_LINE


def _same_model(recipe: Recipe, name: str) -> bool:
    """Whether the recipe's timm model is this one, whichever weights its name speaks of."""
    return str(recipe.get("backbone.name", "")).partition(".")[0] == name.partition(".")[0]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
