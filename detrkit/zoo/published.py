"""The published tables, and which row of them a recipe is meant to reach."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from detrkit.errors import UserError


class PublishedError(UserError):
    """A recipe's `reproduces` that names no published row, or several."""


@lru_cache(maxsize=1)
def published_results() -> tuple[Mapping[str, Any], ...]:
    """Every row of the published tables: table, method, epochs, AP (percent), params_m (millions), gflops, ...

    A key that was not published is missing. Source: the SAP-DETR poster (CVPR 2023, session WED-PM-303); the paper of a
    system that has a table of its own.
    """
    text = files("detrkit.zoo").joinpath("published.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["result"])


def find_published(reproduces: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one row that agrees with every key of a recipe's `reproduces`; None for an empty `reproduces`.

    Raises PublishedError if no row agrees, or more than one.
    """
    if not reproduces:
        return None
    rows = published_results()
    found = [row for row in rows if all(row.get(key) == value for key, value in reproduces.items())]
    if len(found) == 1:
        return found[0]
    said = describe(reproduces)
    if found:
        raise PublishedError(
            f"reproduces = {{ {said} }} fits {len(found)} published rows; add {_telling_key(found)} to tell them apart:"
            + _listed(found)
        )
    raise PublishedError(f"reproduces = {{ {said} }} is no published row; the nearest are:" + _listed(_nearest(said)))


def describe(keys: Mapping[str, Any]) -> str:
    """The keys that name a row, as a recipe writes them."""
    return ", ".join(
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in keys.items()
    )


_NAMING = ("table", "group", "method", "backbone", "epochs")


def _name(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in _NAMING if key in row}


def _listed(rows: list[Mapping[str, Any]]) -> str:
    return "".join(f"\n  {{ {describe(_name(row))} }}" for row in rows)


def _telling_key(rows: list[Mapping[str, Any]]) -> str:
    """The first key in which the rows differ."""
    return next((key for key in _NAMING if len({str(row.get(key)) for row in rows}) > 1), "another key")


def _nearest(said: str) -> list[Mapping[str, Any]]:
    names = {describe(_name(row)): row for row in published_results()}
    short = {describe({k: v for k, v in _name(row).items() if k != "group"}): row for row in names.values()}
    return [short[name] for name in difflib.get_close_matches(said, list(short), n=3, cutoff=0.0)]
