"""What can be wrong with a recipe, and how it is told."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from detrkit.errors import UserError


@dataclass(frozen=True)
class Source:
    """Where a value was said: a file and its line, or a word ("command line", "default") without a line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One mistake. key: the dotted path in the recipe, "" where it concerns a whole file."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = str(Source(self.file, self.line))
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class RecipeError(UserError):
    """A recipe that cannot be used. `problems` holds every mistake found, in the order of reading."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = list(problems)
        count = "one mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{count} in recipe {name}:{lines}")

    def __reduce__(self):
        # Exceptions are rebuilt from their message alone, which is not what this constructor takes.
        return RecipeError, (self.name, self.problems)


def dotted(path: Iterable[str | int]) -> str:
    """`("decoder", "terms", 1)` as "decoder.terms.1"; a part with odd characters is quoted as in TOML."""
    return ".".join(_key_part(str(part)) for part in path)


def format_value(value: Any) -> str:
    """A value as one line of TOML. None, which TOML does not have, is "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key_part(str(k))} = {format_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    text = str(value)
    return '"' + "".join(_ESCAPES.get(letter, letter) for letter in text) + '"'


def one_of(names: Iterable[str]) -> str:
    """'"a", "b" or "c"'; "nothing" if there are no names."""
    quoted = [f'"{name}"' for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted) or "nothing"


def nearest(name: Any, names: Iterable[str]) -> str:
    """'; did you mean "x"?' for the name most like `name`, or an empty string if none is alike."""
    found = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f'; did you mean "{found[0]}"?' if found else ""


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _key_part(part: str) -> str:
    plain = part and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in part)
    return part if plain else format_value(part)
