"""Values laid over a recipe from the command line (`train.epochs=12`) or by the program."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from detrkit.recipe.layers import MOST_LEVELS, Layer, is_too_deep
from detrkit.recipe.lines import KeyPath
from detrkit.recipe.problems import Problem, Source
from detrkit.recipe.registry import Factory

COMMAND_LINE = "command line"


def parse_overrides(overrides: Iterable[str]) -> tuple[Layer, list[Problem]]:
    """One layer from `key.path=value` texts. The value is TOML; what is not TOML is a plain string, in a list, too."""
    if isinstance(overrides, str):
        return Layer(), [Problem(COMMAND_LINE, None, overrides, f"is one text, should be a list: [{overrides!r}]")]
    pairs, problems = [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        path = parse_path(key)
        if not equals or path is None:
            problems.append(Problem(COMMAND_LINE, None, text, "should be written as key.path=value"))
        elif len(path) > MOST_LEVELS:
            problems.append(Problem(COMMAND_LINE, None, key, "is nested too deeply"))
        elif path[0] == "extends":
            problems.append(Problem(COMMAND_LINE, None, "extends", "can only stand in a recipe file"))
        else:
            parsed, problem = _parse_value(value.strip())
            pairs.append((path, parsed))
            if problem:
                problems.append(Problem(COMMAND_LINE, None, key.strip(), problem))
    return layer_of(pairs, Source(COMMAND_LINE)), problems


def is_override(argument: str) -> bool:
    """Whether an argument of the command line is `key.path=value`: not where a file or folder is called so."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and parse_path(key) is not None and not os.path.exists(argument)


def layer_from_values(values: Mapping[str, Any], source: str) -> Layer:
    """A layer from dotted keys and Python values; None is written "none", a path or a tuple as TOML has them.

    Raises ValueError for a key that is not a dotted path.
    """
    pairs = []
    for key, value in values.items():
        path = parse_path(key)
        if path is None:
            raise ValueError(f"{key!r} is not a dotted key of a recipe")
        pairs.append((path, plain(value)))
    return layer_of(pairs, Source(source))


def layer_of(pairs: Iterable[tuple[tuple[str, ...], Any]], source: Source) -> Layer:
    """All pairs as one layer. Were they laid one by one, a `type` would drop the keys said just before it."""
    layer = Layer()
    for path, value in pairs:
        table = layer.values
        for length, part in enumerate(path[:-1], start=1):
            inner = table.get(part)
            if isinstance(inner, str):  # a part given by its name, then one of its options
                inner = {"type": inner}
            table[part] = table = inner if isinstance(inner, dict) else {}
            layer.sources[path[:length]] = source
        table[path[-1]] = value
        layer.sources[path] = source
        _note_inner(layer, path, value, source)
    return layer


def plain(value: Any) -> Any:
    """A Python value as TOML can hold it; a Factory or a dataclass becomes the table that says it."""
    if value is None:
        return "none"
    if isinstance(value, Factory):
        return {"type": value.name, **plain(value.options), **plain(value.parts)}
    if dataclasses.is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    return value


_QUOTES = """; texts in it want quotes, and a shell keeps those within others: 'key=["text"]'"""


def _note_inner(layer: Layer, path: KeyPath, value: Any, source: Source) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            layer.sources[(*path, key)] = source
            _note_inner(layer, (*path, key), item, source)


def parse_path(key: str) -> tuple[str, ...] | None:
    """The parts of a dotted key as TOML reads it, None if it is not one."""
    try:
        table = tomllib.loads(f"{key} = 0")
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    path: tuple[str, ...] = ()
    while isinstance(table, dict):
        if len(table) != 1:
            return None
        [(part, table)] = table.items()
        path = (*path, part)
    return path


def _parse_value(text: str) -> tuple[Any, str | None]:
    try:
        document = tomllib.loads(f"value = {text}")
        deep = is_too_deep(document)
    except RecursionError:
        deep = True
    except tomllib.TOMLDecodeError as error:
        if text[:1] == "[" and text[-1:] == "]" and not any(mark in text[1:-1] for mark in "[]{}\"'"):
            # A shell takes the quotes of the words in key=["a","b"] away.
            return [_parse_value(item.strip())[0] for item in text[1:-1].split(",") if item.strip()], None
        if text[:1] in ("[", "{", '"', "'"):
            cause = str(error).partition(" (at ")[0]
            return text, f"{text} is not a TOML value: {cause}{_QUOTES if text[:1] in '[{' else ''}"
        return text, None
    if deep:
        return "", "is nested too deeply"
    if list(document) != ["value"]:  # a text with line breaks can hold more keys
        return text, None
    return document["value"], None
