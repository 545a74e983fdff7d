"""The errors that a person can mend: the command line prints them without a traceback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


class UserError(Exception):
    """Something in the input is wrong, and the message says what, where and what is accepted instead."""

    is_placed = False
    """whether a recipe's file and line stand before the message"""


class DataError(UserError):
    """An image, an annotation file or a data set that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read safely, or that does not fit the recipe."""


def require_kind(parts: Mapping[str, Any], kind: type, where: str = "") -> None:
    """Raise UserError if a part, one of a person's own perhaps, is not of its slot's class, or has no value for what
    that declares without one; `parts` by their names.
    """
    for name, part in parts.items():
        if not isinstance(part, kind):
            raise UserError(
                f"{where}{name} is of the class {type(part).__name__}, which is no {kind.__name__}: "
                f"derive it from {kind.__module__}.{kind.__qualname__}, whose docstrings say what is asked of it"
            )
        if missing := [key for key in inspect.get_annotations(kind) if not hasattr(part, key)]:
            own, keys = type(part), " and ".join(missing)
            raise UserError(
                f"{where}{name}: {own.__module__}.{own.__qualname__} has to set {keys}, in the class or in its "
                f"constructor: {kind.__module__}.{kind.__qualname__} says what that is"
            )
        for key in _tuples(kind):  # ("a") is "a", whose letters would be taken for names
            if isinstance(value := getattr(part, key), str):
                own = type(part)
                raise UserError(
                    f'{where}{name}: {own.__module__}.{own.__qualname__}.{key} is the text "{value}", should be a '
                    f'tuple of texts, ("{value}",)'
                )


def _tuples(kind: type) -> list[str]:
    """What a class declares as tuples, its own classes' declarations with it."""
    found = {key: str(said) for base in kind.__mro__ for key, said in inspect.get_annotations(base).items()}
    return [key for key, said in found.items() if "tuple[str" in said]


def require_given(value: object, kind: type, giver: str) -> None:
    """Raise UserError unless what a part, one of a person's own perhaps, hands on is of the class that is asked of it.

    Args:
        giver: names the part, such as "the head".
    """
    if not isinstance(value, kind):
        own = type(value).__name__
        given = "nothing" if value is None else f"{'an' if own[0] in 'AEIOUaeiou' else 'a'} {own}"
        raise UserError(
            f"{giver} gives {given}, should be a {'' if kind is list else f'{kind.__module__}.'}{kind.__qualname__}"
        )


def lacking(part: object, asked: Callable[..., Any]) -> UserError:
    """What a base class raises where a part, one of a person's own perhaps, is asked what it does not define.

    Args:
        asked: the base class's function, whose docstring says what a part's own is to give.
    """
    own = type(part)
    return UserError(
        f"{own.__module__}.{own.__qualname__} has to define {asked.__name__}: "
        f"it is asked for what {asked.__module__}.{asked.__qualname__} describes"
    )
