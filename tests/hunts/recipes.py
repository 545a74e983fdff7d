"""Mutates recipes: what is refused names the key, and what is not trains a step."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from detrkit.engine.train import train
from detrkit.errors import UserError
from detrkit.recipe import load_recipe
from detrkit.recipe.problems import dotted, format_value

from .hunting import REFUSED, WENT_ON, Case, Hunt
from .small_run import SMALL_RUN

COUNT = 4000
SHAPES = tuple(one for one in SMALL_RUN if one.startswith(("data.", "train.", "evaluate.")))
TINY = (
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "detector.width=16",
    "detector.heads=2",
    "encoder.layers=1",
    "encoder.feedforward=16",
    "decoder.layers=1",
    "decoder.feedforward=16",
)
# Of each kind of part one, small enough to be trained in a second.
RECIPES = {
    "quickstart": SMALL_RUN,
    "quickstart_dab": (*TINY, *SHAPES, "queries.count=9"),
    "dino_ss_r50_12ep": (*TINY, "data.type=shapes", *SHAPES, "queries.count=9"),
}
VALUES = (
    *("nan", "inf", "-inf", str(2**63), str(2**70), str(-(2**70)), str(10**400), "1e308", "1e-320", "-1", "0", "-0.0"),
    *('""', '"none"', '"auto"', '"x"', '"nan"', '"\\u0000"', '"\\u001b[31m"', '"${HOME}"', '"../.."', '"[bold]"'),
    *("true", "false", "[]", "[[]]", "[nan]", "[1]", "[-1, 0]", '["x"]', "[1, 2, 3, 4, 5]", '[{ type = "x" }]'),
    *("{}", '{ type = "none" }', '{ type = "zzz" }', "{ type = 3 }", '{ "" = 1 }', "{ a = { b = { c = {} } } }"),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "0x7fffffffffffffff", "1_0", f'"{"y" * 5000}"'),
    *("[" * 300 + "]" * 300, "{ a = " * 60 + "1" + " }" * 60),
)


def cases(place: Path) -> Iterator[Case]:
    rows = {name: _rows(name) for name in RECIPES}
    for number in range(COUNT):
        name = random.choice(list(rows))
        key, value = _mutated(random.choice(rows[name]), random.choice(rows[name]))
        shown = f"{key} = {value}"
        told = f"{number} {name}: {shown if len(shown) < 100 else shown[:90] + '...'}"
        yield Case(told, partial(_try, name, key, value))


def _rows(name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Each value of a recipe by its path, defaults too, with lists whole."""
    found = [(path, value) for path, value, _ in load_recipe(name, RECIPES[name]).rows()]
    return [(path, value) for path, value in found if all(isinstance(part, str) for part in path)]


def _mutated(row: tuple[tuple[Any, ...], Any], other: tuple[tuple[Any, ...], Any]) -> tuple[str, str]:
    """A key and a value in TOML: another value at a key, or a key that nearly exists."""
    path, value = row
    kind = random.random()
    if kind < 0.6:
        return dotted(path), random.choice(VALUES)
    if kind < 0.7:  # what stands elsewhere
        return dotted(path), format_value(other[1])
    if kind < 0.8:  # another table in place of a table
        return dotted(path[:-1] or path), random.choice(VALUES)
    if kind < 0.9:
        return dotted((*path, random.choice(("type", "weight", "x", "")))), format_value(value)
    last, place = path[-1], random.randrange(len(path[-1]))
    letters = random.choice((random.choice(string.printable), "", "_", "é", last[place] * 2))
    return dotted((*path[:-1], last[:place] + letters + last[place + 1 :])), format_value(value)


def _try(name: str, key: str, value: str, folder: Path) -> str:
    (folder / "mine.toml").write_text(f'extends = "{name}"\n{key} = {value}\n', encoding="utf-8")
    above = [one for one in RECIPES[name] if not _overlap(one.partition("=")[0], key)]
    told = ""
    try:
        recipe = load_recipe(folder / "mine.toml", above)
    except UserError as error:
        told = str(error)
    if told:
        # Where tables were merged, the key's last part is what stands in the message; at worst the file's line does.
        assert any(part in told for part in (key, json.dumps(key), "mine.toml")), f"names no key: {told}"
        return REFUSED
    train(recipe.with_values({"train.max_minutes": 1e-9, "train.loggers": []}), folder / "run")
    return WENT_ON


def _overlap(one: str, other: str) -> bool:
    first, second = f"{one}.", f"{other}."
    return first.startswith(second) or second.startswith(first)


HUNT = Hunt("recipes", "recipes mutated", cases)
