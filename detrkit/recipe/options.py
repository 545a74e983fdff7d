"""Checking one plain value of a recipe against the type that a part's parameter is annotated with."""

from __future__ import annotations

import json
import math
import os
import types
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from detrkit.errors import UserError
from detrkit.recipe.problems import format_value, nearest, one_of
from detrkit.recipe.registry import Slot

_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path"}
_LIMITS = {
    "gt": "greater than",
    "ge": "at least",
    "lt": "less than",
    "le": "at most",
    "multiple_of": "a multiple of",
}
_LENGTHS = {"min_length": "of length at least", "max_length": "of length at most"}


def check_option(annotation: Any, value: Any) -> tuple[Any, str | None]:
    """The value as its annotation has it (a list becomes a tuple, say), and what is wrong with it or None.

    Strict: "3" is no number and 1 is no truth value; an integer is accepted as a float. Where the annotation
    allows None, the word "none" means it, which TOML has no other way to say.
    """
    try:
        adapter = _adapter(annotation)
    except PydanticSchemaGenerationError:
        return None, f"cannot be said in a recipe, as its annotation is {describe(annotation)}; see docs/own_parts.md"
    if fault := _fault(value):
        return None, f"is {format_value(value)}, should be {describe(annotation)}: {fault}"
    if value == "none" and _accepts_none(annotation):
        return None, None
    try:
        # Read as JSON, so that strictness concerns what TOML can tell apart: an array may become a tuple.
        return adapter.validate_json(json.dumps(value, default=_as_text), strict=True), None
    except ValidationError as error:
        return None, _message(annotation, value, error)


@dataclass(frozen=True, kw_only=True)
class Options:
    """A recipe's table of options as a dataclass, whose fields are checked where code makes it, too.

    Raises:
        UserError: values that are not accepted, all of them named.
    """

    def __post_init__(self) -> None:
        faults = []
        for name, annotation in get_type_hints(type(self), include_extras=True).items():
            if any(isinstance(mark, Slot) for mark in get_args(annotation)):
                continue  # parts, which are checked where they are built
            value, fault = check_option(annotation, getattr(self, name))
            if fault is None:
                object.__setattr__(self, name, value)
            else:
                faults.append(f"{type(self).__name__}.{name}: {fault}")
        if faults:
            raise UserError("; ".join(faults))


def describe(annotation: Any) -> str:
    """What is accepted, in words: "an integer, at least 1"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = _limits(arguments[1:])
        return ", ".join([describe(arguments[0]), *limits])
    if origin is Literal:
        return one_of(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join('"none"' if one is type(None) else describe(one) for one in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values ({'; '.join(map(describe, arguments))})"
    if origin in (list, tuple, set, frozenset):
        return f"a list (of each item: {describe(arguments[0])})"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return one_of(str(one.value) for one in annotation)
    if origin is dict or annotation is dict:
        return f"a table (of each value: {describe(arguments[1])})" if arguments else "a table"
    return _PLAIN.get(annotation) or str(getattr(annotation, "__name__", annotation))


@lru_cache(maxsize=1024)
def _adapter(annotation: Any) -> TypeAdapter:
    return TypeAdapter(annotation)


def _accepts_none(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _accepts_none(get_args(annotation)[0])
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _fault(value: Any) -> str | None:
    """What is wrong with a number, wherever it stands in a value: inf and nan, which TOML has, and integers of more
    than 64 bits.
    """
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_fault, value)), None)
    if isinstance(value, dict):
        return next(filter(None, map(_fault, value.values())), None)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "an integer has up to 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number is finite"
    return None


def _message(annotation: Any, value: Any, error: ValidationError) -> str:
    accepted = describe(annotation)
    message = f"is {format_value(value)}, should be {accepted}"
    # A check written by the part's author says more than the type does.
    own = [e["ctx"]["error"] for e in error.errors() if e["type"] in ("value_error", "assertion_error")]
    if own:
        message += f": {own[0]}"
    if not isinstance(value, (list, tuple, dict)) and check_option(annotation, [value])[1] is None:
        return f"{message}; did you mean {format_value([value])}?"
    if isinstance(value, str):
        message += nearest(value, _literals(annotation))
    return message


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    return [name for one in get_args(annotation) for name in _literals(one)]


def _limits(marks: tuple[Any, ...]) -> list[str]:
    found = []
    for mark in marks:
        for each in getattr(mark, "metadata", None) or (mark,):  # pydantic's Field holds a list of limits
            for name, words in {**_LIMITS, **_LENGTHS}.items():
                limit = getattr(each, name, None)
                if limit is not None:
                    found.append(f"{words} {limit:g}" if isinstance(limit, float) else f"{words} {limit}")
    return found


def _as_text(value: Any) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
