"""What a part's constructor, or a dataclass of options, takes: the schema of a recipe's tables."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from detrkit.errors import UserError
from detrkit.recipe.lines import KeyPath
from detrkit.recipe.problems import one_of
from detrkit.recipe.registry import REQUIRED, Factory, Given, Slot, parts, sections, slots

Kind = Literal["offered", "option", "group", "part", "list", "named"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a part, or one section of the recipe.

    kind: "offered" by the owner at build time, so no key of the recipe; "option", a plain value; "group", a
    dataclass of options; "part", "list" and "named", one nested part, a list, or a table of them by name.
    annotation: for an option its type, for a group its dataclass. slot: of the nested parts.
    optional: whether None is accepted. default: `REQUIRED` where there is none.
    """

    name: str
    kind: Kind
    annotation: Any = None
    slot: str = ""
    optional: bool = False
    default: Any = REQUIRED


def classify(name: str, annotation: Any, default: Any = REQUIRED) -> Parameter:
    """Reads the kind of a parameter off its annotation.

    Raises TypeError for a `Slot` on anything but `Given` or `Factory`, a list or a dict of it.
    """
    if isinstance(annotation, Slot):
        return Parameter(name, "part", slot=annotation.name, default=default)
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        found = [mark for mark in marks if isinstance(mark, Slot)]
        if found:
            kind, optional = _kind_of_slot(name, inner)
            return Parameter(name, kind, slot=found[0].name, optional=optional, default=default)
    bare, optional = without_none(annotation)
    if dataclasses.is_dataclass(bare):
        return Parameter(name, "group", bare, optional=optional, default=default)
    return Parameter(name, "option", annotation, optional=optional, default=default)


def parameters_of(build: Callable[..., Any], slot: str = "") -> dict[str, Parameter]:
    """The parameters of a part, or of a dataclass of options, by name.

    Raises UserError if one cannot be filled from a recipe: `*args`, `**kwargs`, or without an annotation that can be
    read.
    """
    return dict(_parameters_of(build, slots()[slot].offers if slot else ()))


@cache  # a recipe's check asks for each part several times, and every annotation is a text to evaluate
def _parameters_of(build: Callable[..., Any], offers: tuple[str, ...]) -> dict[str, Parameter]:
    target = build.__init__ if inspect.isclass(build) else build
    try:
        hints = get_type_hints(target, include_extras=True)
    except Exception as error:  # annotations are a person's own code, too, and may name what is not there
        where = f"{build.__module__}.{build.__qualname__}"
        raise UserError(f"the annotations of {where} cannot be read: {type(error).__name__}: {error}") from error
    found = {}
    for name, parameter in inspect.signature(build).parameters.items():
        where = f'parameter "{name}" of {build.__module__}.{build.__qualname__}'
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UserError(f"{where} cannot be given by name; a part's options are arguments by name")
        if name in offers:
            found[name] = Parameter(name, "offered", default=parameter.default)
        elif name not in hints:
            raise UserError(
                f"{where} needs a type annotation; only what the slot offers goes without: {one_of(offers)}"
            )
        else:
            found[name] = classify(name, hints[name], _default(build, parameter))
    return found


def part_parameters(slot: str, name: str) -> dict[str, Parameter]:
    """The parameters of a registered part. Raises KeyError if it is not registered."""
    return parameters_of(parts(slot)[name], slot)


def implied_type(values: Mapping[str, Any], path: KeyPath) -> str | None:
    """The type of the part at a path of a recipe whose table says none: its default, or a named part's own key.

    None if there is no part, or if it has no default.
    """
    section = sections().get(str(path[0]))
    if section is None:
        return None
    parameter = classify(section.name, section.annotation, section.default)
    table = values.get(section.name)
    for key in path[1:]:
        found: Parameter | None = None
        if parameter.kind == "named":
            found = Parameter(str(key), "part", slot=parameter.slot, default=key)
        elif parameter.kind == "group":
            found = parameters_of(parameter.annotation).get(str(key))
        elif parameter.kind == "part":
            name = _type_of(table, parameter)
            if name is not None and name in parts(parameter.slot):
                found = part_parameters(parameter.slot, name).get(str(key))
        if found is None:
            return None
        parameter, table = found, table.get(key) if isinstance(table, Mapping) else None
    return _type_of({}, parameter) if parameter.kind == "part" else None


def foreign_sections(values: Mapping[str, Any]) -> dict[str, str]:
    """The sections that a recipe does not have, each with the part that would have to be another one.

    A part may list in `sections` those that belong to it; they are then no sections of its slot's other parts.
    """
    foreign: dict[str, str] = {}
    for section in sections().values():
        parameter = classify(section.name, section.annotation, section.default)
        if parameter.kind != "part":
            continue
        owned = {name: set(getattr(build, "sections", ())) for name, build in parts(parameter.slot).items()}
        chosen = _type_of(values.get(section.name), parameter)
        if chosen in owned:
            others = set().union(*owned.values()) - owned[chosen]
            foreign |= dict.fromkeys(others, f'{section.name} "{chosen}"')
    return foreign


def _type_of(table: Any, parameter: Parameter) -> str | None:
    for one in (table, parameter.default):
        name = one.get("type") if isinstance(one, Mapping) else one
        if isinstance(name, str):
            return name
    return None


def without_none(annotation: Any) -> tuple[Any, bool]:
    """`X | None` as (X, True), anything else as (itself, False); also within `Annotated`."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        bare, optional = without_none(inner)
        return (Annotated[(bare, *marks)], True) if optional else (annotation, False)
    if get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation):
        return Union[tuple(a for a in get_args(annotation) if a is not type(None))], True  # noqa: UP007
    return annotation, False


def _kind_of_slot(name: str, inner: Any) -> tuple[Kind, bool]:
    bare, optional = without_none(inner)
    if bare in (Factory, Given):
        return "part", optional
    if get_origin(bare) is list and get_args(bare)[0] in (Factory, Given):
        return "list", optional
    if get_origin(bare) is dict and get_args(bare)[0] is str and get_args(bare)[1] in (Factory, Given):
        return "named", optional
    raise TypeError(f'"{name}": a Slot marks Given, Given | None, list[Given], dict[str, Given], or Factory alike')


def _default(build: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    # A dataclass shows a placeholder where a field has a default factory.
    if dataclasses.is_dataclass(build):
        for one in dataclasses.fields(build):
            if one.name == parameter.name and one.default_factory is not dataclasses.MISSING:
                return one.default_factory()
    return parameter.default
