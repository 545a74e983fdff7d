"""Layers of a recipe (a base, the recipe itself, the command line), and how one is laid over another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from detrkit.recipe.lines import KeyPath
from detrkit.recipe.problems import Source


@dataclass(frozen=True)
class Layer:
    """Nested plain values, and where each key was said. The source of `()` is that of the layer itself."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[KeyPath, Source] = field(default_factory=dict)

    def source(self, path: KeyPath) -> Source:
        """Where the key was said, or the nearest table around it that was said anywhere."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.sources:
                return self.sources[path[:length]]
        return Source("recipe")


MOST_LEVELS = 30
ImpliedType = Callable[[Mapping[str, Any], KeyPath], str | None]


def is_too_deep(value: Any) -> bool:
    """Whether tables and lists are inside one another on more levels than anything has a use for.

    What reads and writes them may call itself for each level, and Python ends that after some hundred.
    """
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        tables = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [inner for table in tables for inner in table]
        if not level:
            return False
    return True


def merge(base: Layer, over: Layer, implied_type: ImpliedType) -> Layer:
    """Lays `over` upon `base`: tables merge key by key, everything else is replaced.

    A part may be given as its name alone: `encoder = "plain"` is `encoder = { type = "plain" }`. A `type`
    that changes drops the keys of the old type, since they mean nothing to the new one; "none" drops them all.

    implied_type: the type of a part whose table says none (the default, or a named part's own key), from the
    values so far and the table's path; None if there is no such type, which then is no change.
    """
    merged = Layer(copy.deepcopy(base.values), dict(base.sources))
    if () in over.sources:
        merged.sources[()] = over.sources[()]
    _merge_table(merged, merged.values, over, over.values, (), implied_type)
    return merged


def _merge_table(
    merged: Layer,
    into: dict[str, Any],
    over: Layer,
    values: Mapping[str, Any],
    path: KeyPath,
    implied_type: ImpliedType,
) -> None:
    for key, value in values.items():
        here = (*path, key)
        old, new = into.get(key), value
        if isinstance(old, dict) and isinstance(new, str):
            new = {"type": new}
        if isinstance(old, str) and isinstance(new, dict) and new.get("type", old) == old:
            into[key] = old = {"type": old}
            merged.sources[(*here, "type")] = merged.source(here)
        if (
            isinstance(old, dict)
            and isinstance(new, dict)
            and not _changes_type(old, new, partial(implied_type, merged.values, here))
        ):
            if here in over.sources:
                merged.sources[here] = over.sources[here]
            if isinstance(value, str):
                old["type"] = value
                merged.sources[(*here, "type")] = over.source(here)
            else:
                _merge_table(merged, old, over, new, here, implied_type)
            continue
        into[key] = copy.deepcopy(value)
        for known in [known for known in merged.sources if known[: len(here)] == here]:
            del merged.sources[known]
        merged.sources.update({known: s for known, s in over.sources.items() if known[: len(here)] == here})


def _changes_type(old: Mapping[str, Any], new: Mapping[str, Any], implied: Callable[[], str | None]) -> bool:
    if "type" not in new:
        return False
    before = old["type"] if "type" in old else implied()
    return new["type"] != before and (before is not None or new["type"] == "none")
