"""Whose names a checkpoint has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.recipe import Factory, Recipe
from detrkit.recipe.registry import load_registered_parts, parts
from detrkit.zoo.names import Config, Family

OF_TRAINING = ("criterion", "loss", "losses", "loss_fn")
"""what trainings call their losses, whose tensors (DETR's weights of classes) Lightning saves beside the model's"""


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's tensors and whose names they have."""

    family: Family
    prefix: str
    """what stood before every name, and was taken off"""
    given: Collection[str]
    """the names that the checkpoint has, without it"""
    state: Mapping[str, Tensor]
    """the tensors as the family prepares them"""
    losses: tuple[str, ...] = ()
    """names of the losses' tensors, left out"""


def families_of(recipe: Recipe) -> list[Family]:
    """The family that a recipe names, and those that name the same system's parameters otherwise.

    Raises:
        CheckpointError: the recipe names none.
    """
    named: Factory | None = recipe.get("detector.checkpoint_names")
    if named is None:
        raise CheckpointError(
            f"{recipe.name}: detector.checkpoint_names says whose checkpoints can be converted, and it names nobody; "
            f"known are {', '.join(sorted(parts('checkpoint_names')))}"
        )
    return [named(), *(family for family in _known() if family.of == named.name)]


def family_of_config(config: Config) -> Family:
    """The family whose systems a configuration calls by its `model_type`.

    Raises:
        CheckpointError: there is none.
    """
    known = {family.model_type: family for family in _known() if family.model_type}
    said = config.get("model_type")
    if not isinstance(said, str) or said not in known:
        raise CheckpointError(
            f"config.json: model_type = {said!r} is no detector that detrkit has a recipe for; known are "
            f"{', '.join(sorted(known))}. Name a recipe to convert to, if there is one of that system"
        )
    return known[said]


def is_of_another_model(config: Config, official: Mapping[str, Tensor], recipe: Recipe) -> bool:
    """Whether a configuration that lies beside an official code's checkpoint, which has none, says another system."""
    families = families_of(recipe)
    said = config.get("model_type")
    of_this_system = said is None or said in [family.model_type for family in families if family.model_type]
    return not of_this_system and not recognise(official, families).family.model_type


def recognise(official: Mapping[str, Tensor], families: Sequence[Family]) -> Recognised:
    """Whose names a checkpoint has: the first family's, unless another one's mark is there.

    What stands before every name, as training frameworks put "model." there, is taken off where that helps. Tensors of
    the losses beside the model are left out.
    """
    losses = tuple(name for name in official if "." in name and name.partition(".")[0] in OF_TRAINING)
    known = _of_model({name: official[name] for name in official if name not in losses}, families)
    return replace(known, losses=losses)


def _of_model(official: Mapping[str, Tensor], families: Sequence[Family]) -> Recognised:
    forms = {prefix: [name.removeprefix(prefix) for name in official] for prefix in _prefixes(official)}
    for prefix, names in forms.items():
        for family in families:
            if family.marks(names):
                return _recognised(family, prefix, official)
    first = families[0]
    fitting = {prefix: sum(_knows(first, name) for name in names) for prefix, names in forms.items()}
    return _recognised(first, max(fitting, key=lambda prefix: fitting[prefix]), official)


def _recognised(family: Family, prefix: str, official: Mapping[str, Tensor]) -> Recognised:
    plain = {name.removeprefix(prefix): tensor for name, tensor in official.items()}
    return Recognised(family, prefix, set(plain), family.prepare(plain))


def _prefixes(names: Collection[str]) -> Iterator[str]:
    """Nothing first, then ever more of what all names begin with, up to a point."""
    yield ""
    one = next(iter(names), "")
    for place, letter in enumerate(one, start=1):
        if letter == "." and all(name.startswith(one[:place]) for name in names):
            yield one[:place]


def _knows(family: Family, name: str) -> bool:
    return family.ours(name) is not None or family.first_name(name) is not None


def _known() -> list[Family]:
    load_registered_parts()
    return [build() for build in parts("checkpoint_names").values()]
