"""Layers of a recipe (a base, the recipe itself, the command line), and how one is laid over another."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
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


def merge(base: Layer, over: Layer) -> Layer:
    """Lays `over` upon `base`: tables merge key by key, everything else is replaced.

    A part may be given as its name alone: `encoder = "plain"` is `encoder = { type = "plain" }`. A `type`
    that changes drops the keys of the old type, since they mean nothing to the new one. A table without
    a `type` counts as of the type that its own key names (`[losses.giou]`).
    """
    merged = Layer(copy.deepcopy(base.values), dict(base.sources))
    if () in over.sources:
        merged.sources[()] = over.sources[()]
    _merge_table(merged, merged.values, over, over.values, ())
    return merged


def _merge_table(merged: Layer, into: dict[str, Any], over: Layer, values: Mapping[str, Any], path: KeyPath) -> None:
    for key, value in values.items():
        here = (*path, key)
        old, new = into.get(key), value
        if isinstance(old, dict) and isinstance(new, str):
            new = {"type": new}
        if isinstance(old, str) and isinstance(new, dict) and new.get("type", old) == old:
            into[key] = old = {"type": old}
            merged.sources[(*here, "type")] = merged.source(here)
        if isinstance(old, dict) and isinstance(new, dict) and not _changes_type(key, old, new):
            if here in over.sources:
                merged.sources[here] = over.sources[here]
            if isinstance(value, str):
                merged.sources[(*here, "type")] = over.source(here)
            else:
                _merge_table(merged, old, over, new, here)
            continue
        into[key] = copy.deepcopy(value)
        for known in [known for known in merged.sources if known[: len(here)] == here]:
            del merged.sources[known]
        merged.sources.update({known: s for known, s in over.sources.items() if known[: len(here)] == here})


def _changes_type(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "type" in new and new["type"] != old.get("type", key)


def nest(path: KeyPath, value: Any) -> dict[str, Any]:
    """`("train", "epochs"), 3` as `{"train": {"epochs": 3}}`."""
    for part in reversed(path):
        value = {part: value}
    return value
