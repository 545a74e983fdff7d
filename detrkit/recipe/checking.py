"""Strict checking of a merged recipe against the registry: all mistakes at once, before anything is built."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detrkit.errors import UserError
from detrkit.recipe.layers import Layer, merge
from detrkit.recipe.lines import KeyPath
from detrkit.recipe.options import check_option, describe
from detrkit.recipe.overrides import plain
from detrkit.recipe.parameters import Parameter, classify, foreign_sections, parameters_of
from detrkit.recipe.problems import Problem, dotted, format_value, nearest, one_of
from detrkit.recipe.registry import REQUIRED, Factory, parts, sections, slots

TEXT_KEYS = ("title", "description")
ROOT_KEYS = (*TEXT_KEYS, "reproduces", "extends", "imports")
FAILED = object()  # stands for a value that a problem was reported for


@dataclass
class Checker:
    """Goes through a merged recipe and collects what is wrong with it.

    complete: False if a base could not be read; what is missing may stand there, so it is then not reported.
    merged_from: the values that were laid over one another, the lowest first, where they are known.
    """

    layer: Layer
    complete: bool = True
    merged_from: Sequence[Mapping[str, Any]] = ()
    problems: list[Problem] = field(default_factory=list)

    def check(self) -> dict[str, Any]:
        """All sections: a dataclass instance, a Factory, None, or a list or dict of factories, by name."""
        values, known = self.layer.values, sections()
        for key in values:
            if key in ROOT_KEYS:
                self._check_root_key(key, values[key])
            elif key not in known:
                self.report((key,), f"there is no such section{_meant(key)}")
        foreign = foreign_sections(values)
        for key in [key for key in values if key in foreign]:
            self.report((key,), f"is no section of {foreign[key]}")
        return {
            name: self.value(classify(name, section.annotation, section.default), values, (), section=True)
            for name, section in known.items()
            if name not in foreign
        }

    def report(self, path: KeyPath, message: str) -> None:
        source = self.layer.source(path)
        self.problems.append(Problem(source.file, source.line, dotted(path), message))

    def value(self, parameter: Parameter, table: Mapping[str, Any], path: KeyPath, *, section: bool = False) -> Any:
        """The checked value of one parameter, out of the table that may or may not say it."""
        path, given = (*path, parameter.name), table.get(parameter.name, REQUIRED)
        if given is REQUIRED:
            if parameter.default is not REQUIRED and parameter.kind in ("option", "group"):
                return copy.deepcopy(parameter.default)  # a list must not be shared by all recipes
            given = _when_missing(parameter, section)
            if given is None:
                return None
            if given is REQUIRED:
                if self.complete:
                    self.report(path, f"is missing{_accepted(parameter)}")
                return FAILED
        elif parameter.optional and given == "none" and parameter.kind != "part":
            return None
        if parameter.kind == "option":
            checked, message = check_option(parameter.annotation, given)
            if message:
                self.report(path, message)
            return FAILED if message else checked
        if parameter.kind == "group":
            return self.group(parameter, given, path)
        if parameter.kind == "part":
            return self.part(parameter, given, path)
        if parameter.kind == "list":
            return self.listed(parameter, given, path)
        return self.named(parameter, given, path)

    def group(self, parameter: Parameter, given: Any, path: KeyPath) -> Any:
        """An instance of a dataclass of options; what is not said is as in the default."""
        build = parameter.annotation
        if not isinstance(given, dict):
            self.report(path, f"is {format_value(given)}, should be a table")
            return FAILED
        wanted = parameters_of(build)
        self._check_keys(given, wanted, path, owner=f'"{path[-1]}"')
        if isinstance(parameter.default, build):
            given = self._over_default(parameter.default, given)
        found = {name: self.value(parameter, given, path) for name, parameter in wanted.items()}
        if any(value is FAILED for value in found.values()):
            return FAILED
        try:
            return build(**found)
        except ValueError as error:  # a check over several options at once, in __post_init__
            self.report(path, str(error))
            return FAILED

    def part(self, parameter: Parameter, given: Any, path: KeyPath, implied: str | None = None) -> Any:
        """A Factory, or None where the type is "none" and that is accepted."""
        slot = parameter.slot
        if slot not in slots():
            raise TypeError(f'slot "{slot}" of {dotted(path)} was never declared with define_slot')
        known = parts(slot)
        table = {"type": given} if isinstance(given, str) else given
        if not isinstance(table, dict):
            message = f"is {format_value(given)}, should be a table with `type`, or the name of a {slot}"
            self.report(path, f"{message}: {one_of(known)}")
            return FAILED
        if "type" not in table and parameter.default not in (REQUIRED, None):
            table = self._over_default(parameter.default, table)
        name = table.get("type", implied)
        type_path = path if isinstance(given, str) else (*path, "type")
        if name is None:
            if self.complete:
                self.report(type_path, f"is missing; accepted: {one_of(sorted(known))}")
            return FAILED
        if name == "none" and parameter.optional and "none" not in known:
            for key in set(table) - {"type"}:
                self.report((*path, key), 'belongs to no part, since the type is "none"')
            return None
        if not isinstance(name, str) or name not in known:
            # A named part without a type was meant to be one of those that the slot has.
            where = type_path if "type" in table else path
            names = sorted([*known, "none"] if parameter.optional else known)
            message = f"there is no {slot} {format_value(name)}; accepted: {one_of(names)}"
            self.report(where, message + nearest(name, names))
            return FAILED
        return self._factory(slot, name, table, path)

    def listed(self, parameter: Parameter, given: Any, path: KeyPath) -> Any:
        """A list of factories."""
        if not isinstance(given, list):
            known = parts(parameter.slot)
            hint = f"; did you mean [{format_value(given)}]?" if given in list(known) else f": {one_of(sorted(known))}"
            self.report(path, f"is {format_value(given)}, should be a list of parts ({parameter.slot}){hint}")
            return FAILED
        one = Parameter(parameter.name, "part", slot=parameter.slot)
        found = [self.part(one, item, (*path, index)) for index, item in enumerate(given)]
        return FAILED if any(item is FAILED for item in found) else found

    def named(self, parameter: Parameter, given: Any, path: KeyPath) -> Any:
        """A dict of factories; the key is the type where none is said, and "none" leaves an entry out."""
        if not isinstance(given, dict):
            self.report(path, f"is {format_value(given)}, should be {_table_of(parameter, path)}")
            return FAILED
        if "type" in given:
            self.report((*path, "type"), f"has no place here, this is {_table_of(parameter, path)}")
            return FAILED
        one = Parameter(parameter.name, "part", slot=parameter.slot, optional=True)
        found = {key: self.part(one, item, (*path, key), implied=key) for key, item in given.items()}
        kept = {key: item for key, item in found.items() if item is not None and item is not FAILED}
        for key in [key for key, item in found.items() if item is None]:
            if self.complete and self._leaves_nothing_out((*path, key)):
                there = [f'"{name}"' + (f" ({one.name})" if name != one.name else "") for name, one in kept.items()]
                hint = f"; there are {', '.join(there)}{nearest(key, kept)}" if there else ""
                self.report((*path, key), f'is "none", but no {parameter.slot} here has that name{hint}')
        return FAILED if any(item is FAILED for item in found.values()) else kept

    def _leaves_nothing_out(self, path: KeyPath) -> bool:
        """Whether a "none" was laid over values that do not have the part; the lowest may say it, as a run's do."""
        said = [_at(values, path) for values in self.merged_from]
        return bool(said) and said[0] is REQUIRED and all(one is REQUIRED or _is_none(one) for one in said)

    def _factory(self, slot: str, name: str, table: Mapping[str, Any], path: KeyPath) -> Any:
        build = parts(slot)[name]
        known = parameters_of(build, slot)
        wanted = {key: parameter for key, parameter in known.items() if parameter.kind != "offered"}
        offered = [key for key in table if key in known and key not in wanted]
        for key in offered:
            shared = any(_has_option(key, one, "detector") for one in parts("detector").values())
            told = f"; detector.{key} sets it for all parts" if shared else ""
            self.report((*path, key), f"is set by the model around this part, not in a recipe{told}")
        rest = {key: value for key, value in table.items() if key not in offered}
        self._check_keys(rest, {"type", *wanted}, path, owner=f'{slot} "{name}"', slot=slot)
        found = {key: self.value(parameter, table, path) for key, parameter in wanted.items()}
        if any(value is FAILED for value in found.values()):
            return FAILED
        nested = {key for key in found if wanted[key].slot}
        return Factory(
            slot=slot,
            name=name,
            options={key: value for key, value in found.items() if key not in nested},
            parts={key: value for key, value in found.items() if key in nested},
            build=build,
            places={key: self._place((*path, key)) for key in wanted if (*path, key) in self.layer.sources}
            | {"": self._place(path)},
        )

    def _place(self, path: KeyPath) -> str:
        return f"{self.layer.source(path)}: {dotted(path)}"

    def _check_keys(
        self, table: Mapping[str, Any], known: Collection[str], path: KeyPath, *, owner: str, slot: str = ""
    ) -> None:
        for key in [key for key in table if key not in known]:
            hint = nearest(key, known) or f"; accepted: {one_of(sorted(known))}"
            others = [other for other, build in parts(slot).items() if _has_option(key, build, slot)] if slot else []
            hint += f"; {slot} {one_of(sorted(others))} has it" if others else ""
            self.report((*path, key), f"there is no such option of {owner}{hint}")

    def _over_default(self, default: Any, table: dict[str, Any]) -> dict[str, Any]:
        default = plain(default)
        default = {"type": default} if isinstance(default, str) else default
        return merge(Layer(default), Layer(table), lambda values, path: None).values

    def _check_root_key(self, key: str, value: Any) -> None:
        if key in TEXT_KEYS and not isinstance(value, str):
            self.report((key,), f"is {format_value(value)}, should be a string")
        if key == "reproduces" and not isinstance(value, dict):
            self.report((key,), f"is {format_value(value)}, should be a table")


def _table_of(parameter: Parameter, path: KeyPath) -> str:
    known = sorted(parts(parameter.slot))
    example = f", such as {dotted((*path, known[0]))} = {{}}; accepted: {one_of(known)}" if known else ""
    return f"a table of parts by name{example}"


def _at(values: Any, path: KeyPath) -> Any:
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return REQUIRED
        values = values[key]
    return values


def _is_none(value: Any) -> bool:
    return value == "none" or (isinstance(value, Mapping) and value.get("type") == "none")


def _has_option(key: str, build: Callable[..., Any], slot: str) -> bool:
    """Whether a part has an option of that name, rather than nothing or what its model gives it.

    One that a recipe cannot fill has none: it is a mistake of whoever names it, and of nobody else.
    """
    try:
        known = parameters_of(build, slot)
    except UserError:
        return False
    return key in known and known[key].kind != "offered"


def _meant(key: str) -> str:
    """What somebody may have meant who wrote the name of no section: an option without its section, most of all."""
    known, options = sections(), []
    for name, section in known.items():
        one = classify(name, section.annotation, section.default)
        builds = [one.annotation] if one.kind == "group" else parts(one.slot).values() if one.kind == "part" else ()
        if any(_has_option(key, build, one.slot) for build in builds):
            options.append(f"{name}.{key}")
    if options:
        return f"; did you mean {one_of(options)}?"
    return nearest(key, (*known, *ROOT_KEYS)) or f"; accepted: {one_of(known)}"


def _when_missing(parameter: Parameter, section: bool) -> Any:
    """What a parameter that no recipe says would be in a recipe; `REQUIRED` if it has to be said."""
    if parameter.default is not REQUIRED:
        if parameter.default is not None:
            return plain(parameter.default)
        return [] if parameter.kind == "list" else {} if parameter.kind == "named" else None
    if parameter.kind == "named" or (parameter.kind == "group" and _needs_nothing(parameter.annotation)):
        return {}
    if section and parameter.kind in ("list", "group"):  # a group then reports each option that is missing
        return [] if parameter.kind == "list" else {}
    return REQUIRED


def _accepted(parameter: Parameter) -> str:
    if parameter.slot:
        return f"; accepted: {one_of(sorted(parts(parameter.slot)))}"
    return f", should be {describe(parameter.annotation)}" if parameter.kind == "option" else ""


def _needs_nothing(build: type) -> bool:
    return all(
        one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
        for one in dataclasses.fields(build)
    )
