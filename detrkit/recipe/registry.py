"""Where parts, slots and recipe sections are made known, by the modules that own them, on import.

A *part* is a class or a factory function that can be named in a recipe. A *slot* is a place that a part
can fill; the slot's owner hands some values over when it builds the part (`width`, `layer`, ...), and these
*offered* names are therefore no keys of the recipe. A *section* is a top-level table of the recipe.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any, TypeVar

from detrkit.errors import DataError, UserError, require_kind
from detrkit.recipe.plugins import BrokenPlugin, load_parts, others_bring_parts
from detrkit.recipe.problems import nearest, one_of

Build = TypeVar("Build", bound=Callable[..., Any])
REQUIRED = inspect.Parameter.empty  # stands for "has no default"


@dataclass(frozen=True)
class Slot:
    """Marks an annotation as a place for parts: `Annotated[list[Given], Slot("term")]`."""

    name: str


@dataclass(frozen=True)
class Factory:
    """A part with its options chosen and checked, not built yet. Call it with the slot's offered values.

    slot: the slot it fills; name: the part's registered name (`type` in the recipe);
    options: the validated option values, defaults included;
    parts: its nested parts, by parameter: a Factory, None, a list or a dict of factories;
    build: the registered class or function;
    places: where a recipe says each of its options, as "file:line: key", and the part itself by "".
    """

    slot: str
    name: str
    options: Mapping[str, Any]
    parts: Mapping[str, Any]
    build: Callable[..., Any]
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # A registered part goes by its name: pickle itself finds no function that was made within another.
        registered = parts(self.slot).get(self.name) is self.build
        return {key: value for key, value in vars(self).items() if not (registered and key == "build")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "build" not in state:
            load_registered_parts()
            if (build := parts(state["slot"]).get(state["name"])) is None:
                raise UserError(f'{state["slot"]} "{state["name"]}" is not known here: import what registers it first')
            state = {**state, "build": build}
        vars(self).update(state)

    def __call__(self, **offered: Any) -> Any:
        """Builds the part. It receives those offered values that its constructor names, and no others.

        Raises TypeError if a name is not among the slot's offers, or if the part needs one that is not given;
        UserError if what was built, by a person's own class perhaps, is not derived from the slot's base class, or
        lacks what that declares. What the part's constructor raises says where the recipe has the part.
        """
        slot = slots().get(self.slot)
        strange = set(offered) - set(slot.offers if slot else ())
        if strange:
            raise TypeError(f'slot "{self.slot}" does not declare the offered {", ".join(sorted(strange))}')
        wanted = inspect.signature(self.build).parameters
        arguments = {name: value for name, value in offered.items() if name in wanted}
        arguments |= {**self.options, **self.parts}
        lacking = [n for n, p in wanted.items() if p.default is REQUIRED and n not in arguments]
        if lacking:
            raise TypeError(f'{self.slot} "{self.name}" needs {", ".join(lacking)}, which its owner did not offer')
        try:
            part = self.build(**arguments)
            if slot is not None and slot.base is not None:
                require_kind({f'{self.slot} "{self.name}"': part}, slot.base)
        except Exception as error:
            self._place(error)
            raise
        return part

    def _place(self, error: Exception) -> None:
        """Add to an error of the constructor where the recipe says the option that it names first, or the part.

        Data that cannot be used is no mistake of the recipe's, unless it names an option.
        """
        if not self.places or getattr(error, "is_placed", False):
            return
        if not isinstance(error, UserError):
            if not hasattr(error, "__notes__"):
                error.add_note(f'({self.slot} "{self.name}" of {self.places[""]})')
            return
        named = []
        for key, place in self.places.items():
            dotted = re.escape(place.rpartition(": ")[2])
            bare = rf"{key}\b" if "_" in key else rf"{key} (=|is\b|are\b)"  # other names are words, too
            if key and (match := re.search(rf"{dotted}\b|(?<![\w.]){bare}", str(error))):
                named.append((match.start(), key))
        if named or not isinstance(error, DataError):
            error.args = (f"{self.places[min(named)[1] if named else '']}: {error}",)
            error.is_placed = True


Given = Factory | str | Callable[..., Any]
"""What a constructor takes for a part: a factory, as a recipe makes it, or what `detrkit.recipe.as_factory` takes."""


@dataclass(frozen=True)
class SlotDefinition:
    """A slot's name, the names of the values that its owner hands to the part when it builds it, and the base class
    that declares all that is asked of the slot's parts.
    """

    name: str
    offers: tuple[str, ...]
    base: type | None = None


@dataclass(frozen=True)
class SectionDefinition:
    """A top-level table. annotation: a dataclass of options, or an annotation that carries a Slot."""

    name: str
    annotation: Any
    default: Any


@dataclass
class Registry:
    """All that is known: parts by slot and name, slots, sections."""

    parts: dict[str, dict[str, Callable[..., Any]]] = field(default_factory=dict)
    slots: dict[str, SlotDefinition] = field(default_factory=dict)
    sections: dict[str, SectionDefinition] = field(default_factory=dict)
    has_loaded_parts: bool = False
    broken_plugins: list[BrokenPlugin] = field(default_factory=list)


_current = Registry()


def register(slot: str, name: str) -> Callable[[Build], Build]:
    """Makes the decorated class or function known as part `name` of `slot`; it is returned unchanged.

    Raises ValueError if another object already has that name, or if there is no such slot once all are known.
    """
    if _current.has_loaded_parts and slot not in _current.slots:
        raise ValueError(
            f'there is no slot "{slot}"{nearest(slot, _current.slots) or f"; slots: {one_of(_current.slots)}"}'
        )

    def decorate(build: Build) -> Build:
        known = _current.parts.setdefault(slot, {})
        other = known.get(name)
        if other is not None and _identity(other) != _identity(build):
            raise ValueError(f'{slot} "{name}" is already {_identity(other)}, it cannot be {_identity(build)} too')
        known[name] = build
        return build

    return decorate


def define_slot(name: str, *, offers: tuple[str, ...] = (), base: type | None = None) -> Slot:
    """Declares a slot, next to its base class.

    offers: the values that the owner hands over when building a part. base: the class that every part of the slot is
    derived from; it declares, with defaults, all that others ask of the part.
    Raises ValueError if the slot is already declared with other offers.
    """
    definition = SlotDefinition(name, tuple(offers), base)
    if _current.slots.setdefault(name, definition).offers != definition.offers:
        raise ValueError(f'slot "{name}" is already declared with the offers {_current.slots[name].offers}')
    return Slot(name)


def define_section(name: str, annotation: Any, *, default: Any = REQUIRED) -> None:
    """Declares a top-level table of the recipe.

    annotation: a frozen dataclass of options, `Slot("x")` for one part, or an annotation that carries a Slot
    (`Annotated[Factory | None, Slot("x")]`, `Annotated[dict[str, Factory], Slot("x")]`, ...).
    default: what a recipe without the table means; a section of one part has none unless given, a dataclass
    has its own defaults, and lists and named parts are empty.
    Raises ValueError if the section is already declared otherwise.
    """
    definition = SectionDefinition(name, annotation, default)
    other = _current.sections.setdefault(name, definition)
    if other != definition and not _same_class(other.annotation, annotation):
        raise ValueError(f'section "{name}" is already declared as {other.annotation}')


def parts(slot: str) -> Mapping[str, Callable[..., Any]]:
    """The parts registered for a slot, by name; empty if there are none."""
    return _current.parts.get(slot, {})


def slots() -> Mapping[str, SlotDefinition]:
    """All declared slots, by name."""
    return _current.slots


def sections() -> Mapping[str, SectionDefinition]:
    """All declared sections, by name, in order of declaration."""
    return _current.sections


def load_registered_parts() -> None:
    """Imports what registers parts, detrkit's own and those of installed packages, once."""
    if not _current.has_loaded_parts:
        _current.broken_plugins = load_parts()
        _current.has_loaded_parts = True


def broken_plugins() -> list[BrokenPlugin]:
    """The installed packages whose parts cannot be loaded, each with its cause."""
    if others_bring_parts():
        load_registered_parts()
    return _current.broken_plugins


@contextmanager
def empty_registry() -> Iterator[Registry]:
    """Within the block nothing is registered and nothing is loaded: for tests."""
    global _current
    before, _current = _current, Registry(has_loaded_parts=True)
    try:
        yield _current
    finally:
        _current = before


def _identity(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _same_class(first: Any, second: Any) -> bool:
    # A module that is imported a second time makes a second class of the same name: not a conflict.
    return is_dataclass(first) and is_dataclass(second) and _identity(first) == _identity(second)
