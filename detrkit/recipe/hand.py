"""Parts without a recipe: what a constructor takes where a recipe would name a part."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from detrkit.errors import UserError
from detrkit.recipe.checking import FAILED, Checker
from detrkit.recipe.layers import Layer
from detrkit.recipe.parameters import Parameter, parameters_of
from detrkit.recipe.problems import dotted, nearest, one_of
from detrkit.recipe.registry import Factory, load_registered_parts, parts, slots


def part(slot: str, name: str, **options: Any) -> Factory:
    """A registered part with its options, checked as a recipe's are: `part("term", "content")`.

    It is built where it is given to a constructor, or by calling it with what its slot offers (`width=256, heads=8`).

    Args:
        slot: docs/own_parts.md lists them.
        name: its `type` in a recipe.
        options: as in a recipe; nested parts may be anything that `as_factory` takes.

    Raises:
        UserError: there is no such slot, part or option, or a value that is not accepted.
    """
    load_registered_parts()
    if slot not in slots():
        raise UserError(f"there is no slot {slot!r}; accepted: {one_of(sorted(slots()))}{nearest(slot, slots())}")
    known = parts(slot)
    if name not in known:
        raise UserError(f"there is no {slot} {name!r}; accepted: {one_of(sorted(known))}{nearest(name, known)}")
    wanted = {key: one for key, one in parameters_of(known[name], slot).items() if one.kind != "offered"}
    if strange := [key for key in options if key not in wanted]:
        hint = nearest(strange[0], wanted) or f"; accepted: {one_of(sorted(wanted))}"
        raise UserError(f'{slot} "{name}" has no option {strange[0]!r}{hint}')
    checker = Checker(Layer({}))
    found = {key: _value(checker, parameter, options, (slot, name)) for key, parameter in wanted.items()}
    if checker.problems:
        told = "; ".join(f"{problem.key}: {problem.message}" for problem in checker.problems)
        raise UserError(told)
    nested = {key for key in found if wanted[key].slot}
    return Factory(
        slot=slot,
        name=name,
        options={key: value for key, value in found.items() if key not in nested},
        parts={key: value for key, value in found.items() if key in nested},
        build=known[name],
    )


def as_factory(slot: str, given: Any) -> Factory:
    """Whatever stands for a part as what builds it.

    Args:
        slot: the one that it is to fill.
        given: a factory; a registered name; a class or function, or a `functools.partial` of one with its options by
            name; or a part that is built already, which is taken as it is. A module that is built can be taken once.

    Raises:
        UserError: it is none of these, or fills another slot.
    """
    if isinstance(given, Factory):
        if given.slot != slot:
            raise UserError(f'a {slot} is wanted here, and {given.slot} "{given.name}" is none')
        return given
    if isinstance(given, str):
        return part(slot, given)
    load_registered_parts()
    base = slots()[slot].base
    if base is not None and isinstance(given, base):
        return Factory(slot=slot, name=_name(slot, type(given)), options={}, parts={}, build=_Built(slot, given))
    options: Mapping[str, Any] = {}
    if isinstance(given, functools.partial) and not given.args:
        given, options = given.func, given.keywords
    if isinstance(given, functools.partial) or not callable(given) or (base and not _gives(given, base)):
        kind = "part" if base is None else base.__name__
        raise UserError(
            f"{_told(given)} is no {slot}; accepted are a built {kind}, its class, a functools.partial of it with "
            f'options by name, or detrkit.part("{slot}", NAME, ...)'
        )
    name = _name(slot, given)
    if parts(slot).get(name) is given:  # with its own parts' defaults, which stand as names in its signature
        return part(slot, name, **options)
    return Factory(slot=slot, name=name, options=dict(options), parts={}, build=given)


class _Built:
    """Gives a part that is built already; a module once, since two owners would train the same weights unawares."""

    def __init__(self, slot: str, built: Any):
        self.slot, self.built, self.taken = slot, built, False

    def __call__(self) -> Any:
        if self.taken and hasattr(self.built, "parameters"):
            raise UserError(
                f"a built {type(self.built).__name__} fills one place, and its weights would fill several here: give "
                f'its class, a functools.partial of it, or detrkit.part("{self.slot}", NAME, ...)'
            )
        self.taken = True
        return self.built


def _value(checker: Checker, parameter: Parameter, options: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    given = options.get(parameter.name)
    if parameter.slot and given is not None and not isinstance(given, str):
        if parameter.kind == "part":
            return as_factory(parameter.slot, given)
        if parameter.kind == "list" and isinstance(given, (list, tuple)):
            return [as_factory(parameter.slot, one) for one in given]
        if parameter.kind == "list" or not isinstance(given, Mapping):
            words = "a list" if parameter.kind == "list" else "a dict by name"
            told = f"is {_told(given)}, should be {words} of parts: {one_of(sorted(parts(parameter.slot)))}"
            raise UserError(f"{dotted((*path, parameter.name))}: {told}")
        return {key: as_factory(parameter.slot, one) for key, one in given.items()}
    if parameter.slot and parameter.name in options and given is None:
        options = {parameter.name: "none"}
    value = checker.value(parameter, options, path)
    return None if value is FAILED else value


def _name(slot: str, build: Any) -> str:
    """What the part is called in its slot; its own name where it is not registered."""
    for name, known in parts(slot).items():
        if known is build:
            return name
    return getattr(build, "__name__", type(build).__name__)


def _gives(build: Any, base: type) -> bool:
    """Whether it may build a part: a class of the slot's, or a function, whose result is looked at when it is built."""
    return issubclass(build, base) if inspect.isclass(build) else inspect.isroutine(build)


def _told(given: Any) -> str:
    own = type(given).__name__
    return f"the class {given.__name__}" if inspect.isclass(given) else f"{'an' if own[0] in 'aeiou' else 'a'} {own}"
