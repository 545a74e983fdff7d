"""A recipe that has been read and checked: its values, where each came from, and its parts."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from detrkit.errors import UserError
from detrkit.paths import with_home
from detrkit.recipe.checking import ROOT_KEYS, Checker
from detrkit.recipe.layers import Layer, merge
from detrkit.recipe.library import display_name, find_recipe, recipe_name, recipe_names
from detrkit.recipe.lines import KeyPath
from detrkit.recipe.overrides import layer_from_values, parse_overrides, parse_path, plain
from detrkit.recipe.parameters import implied_type
from detrkit.recipe.problems import Problem, RecipeError, Source, dotted, nearest
from detrkit.recipe.reading import Document, Reader
from detrkit.recipe.registry import REQUIRED, Factory, load_registered_parts
from detrkit.recipe.trust import require_trust

DEFAULT = Source("default")
RUN_RECIPE, RUN_CATEGORIES = "recipe.toml", "categories.json"  # files that make a folder a run's


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `load_recipe` and `with_values` make it.

    name: the name that it is known by, or the file's name without ".toml"; of a recipe.toml its folder's.
    values: what the files and overrides say, merged: nested plain dicts, without the parts' defaults.
    sections: the checked sections: options (a dataclass), a Factory, None, or a list or dict of factories.
    """

    name: str
    values: Mapping[str, Any]
    sections: Mapping[str, Any]
    sources: Mapping[KeyPath, Source]

    @property
    def title(self) -> str:
        """One line that says what the recipe is; "" if it does not say."""
        return self.values.get("title", "")

    @property
    def description(self) -> str:
        """What there is to say beyond the title; "" if nothing."""
        return self.values.get("description", "")

    @property
    def reproduces(self) -> Mapping[str, Any]:
        """The published row that the recipe is meant to reach; empty if there is none."""
        return self.values.get("reproduces", {})

    def __repr__(self) -> str:
        """Its name and title; `to_toml` says all of it, which is a screen or more."""
        return f"Recipe({self.name!r}, title={self.title!r})"

    def section(self, name: str) -> Any:
        """A top-level section: options (a dataclass), a Factory, None, or a list or dict of factories.

        Raises KeyError if no section of that name is declared.
        """
        if name not in self.sections:
            raise KeyError(f'there is no section "{name}"{nearest(name, self.sections)}')
        return self.sections[name]

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """The checked value of a dotted key, a part's default included; "encoder.type" is the part's name.

        Raises KeyError if there is no such key and no `default` is given.
        """
        value: Any = self.sections
        for part in self._path(key):
            value = _step(value, part)
        if value is REQUIRED:
            value = self.values.get(key, REQUIRED) if key in ROOT_KEYS else REQUIRED
        if value is REQUIRED and default is REQUIRED:
            raise KeyError(f'there is no key "{key}" in recipe {self.name}')
        return default if value is REQUIRED else value

    def source(self, key: str) -> str:
        """Where the value of a dotted key was said: "recipes/base/x.toml:14", "command line" or "default".

        Raises KeyError if there is no such key.
        """
        self.get(key)
        return str(self.source_of(self._path(key)))

    def source_of(self, path: KeyPath) -> Source:
        """As `source`, for the parts of a key and without the check that it exists."""
        value: Any = self.values
        source = DEFAULT
        said: KeyPath = ()
        for length, part in enumerate(path, start=1):
            said = (*said, int(part) if isinstance(value, list) and str(part).isdecimal() else part)
            value = _step(value, part)
            if value is REQUIRED:
                return DEFAULT
            source = self.sources.get(said, source)
            if isinstance(value, str) and path[length:] == ("type",):  # a part that is said by its name
                return source
        return source

    def with_values(self, values: Mapping[str, Any], *, source: str = "program") -> Recipe:
        """A new recipe with some values replaced, by dotted key; None stands for "none".

        source: what `Recipe.source` then says of them. Raises RecipeError as `load_recipe` does.
        """
        own = Layer(copy.deepcopy(dict(self.values)), dict(self.sources))
        over = layer_from_values(values, source)
        return _checked(self.name, merge(own, over, implied_type), [], merged_from=[self.values, over.values])

    def full_values(self) -> dict[str, Any]:
        """The whole recipe as nested plain values, every default written out; None is "none"."""
        head = {key: self.values[key] for key in ROOT_KEYS if key in self.values}
        return {**copy.deepcopy(head), **{name: plain(value) for name, value in self.sections.items()}}

    def rows(self) -> Iterator[tuple[KeyPath, Any, Source]]:
        """Every value of the whole recipe with its path and where it came from; lists are single values.

        A table's own values come before the tables inside it, as TOML has to have them.
        """
        yield from self._rows(self.full_values(), ())

    def left_out(self) -> list[str]:
        """The losses, costs, blocks and the like that a "none" takes away, each with where that was said."""
        return [f"{dotted(path)} ({self.source_of(path)})" for path in _left_out(self.values, self.sections, ())]

    def to_toml(self, *, defaults: bool = False) -> str:
        """The recipe as one TOML document that needs no base; `load_recipe` reads it back.

        defaults: also write what the parts' defaults are, so that a later change of them changes nothing.
        """
        return tomli_w.dumps(self.full_values() if defaults else dict(self.values))

    def _rows(self, table: Mapping[str, Any], path: KeyPath) -> Iterator[tuple[KeyPath, Any, Source]]:
        inner = {key: value for key, value in table.items() if isinstance(value, dict) and value}
        for key in [key for key in table if key not in inner]:
            yield (*path, key), table[key], self.source_of((*path, key))
        for key, value in inner.items():
            yield from self._rows(value, (*path, key))

    def _path(self, key: str) -> KeyPath:
        path = parse_path(key)
        if path is None:
            raise KeyError(f'"{key}" is not a dotted key of a recipe')
        return path


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """Reads a recipe and checks it against the registered parts.

    name_or_path: the name of a known recipe, a file (with or without ".toml"), or the folder of a run.
    overrides: `key.path=value` texts, laid over it last.
    trust: import also what comes along unnamed: what a run imports that was made elsewhere, or a base in another
        folder.
    Raises UserError if there is no such recipe, or if it comes along with code that is not trusted; RecipeError with
    every mistake that was found in it.
    """
    path = recipe_file(str(name_or_path))
    if path.name == RUN_RECIPE and (path.parent / RUN_CATEGORIES).is_file():
        return load_run_recipe(path.parent, overrides, trust=trust)
    reader = Reader(folder=path.resolve().parent)
    name = recipe_name(path)
    # Mistakes are told of a path, since a file may be called as a known recipe is.
    told = name if find_recipe(name) == path else display_name(path)
    return _loaded(reader, reader.read(path), name, told, overrides, run=None, trust=trust)


def recipe_file(name: str) -> Path:
    """The file of a recipe that is named as `load_recipe` takes it; UserError where there is none."""
    known = find_recipe(name)
    if known:
        return known
    if not name:
        raise UserError("the name of the recipe is empty; `detrkit recipes` lists the known ones")
    path = with_home(name)
    candidates = [
        path,
        Path(f"{path}.toml"),
        path / "recipe.toml",
        find_recipe(name.removesuffix(".toml")),
    ]
    for candidate in candidates:
        if candidate is not None and os.path.isfile(candidate):
            return candidate
    if path.is_dir():
        raise UserError(f"{name} is a folder without a recipe.toml; name a .toml file in it, or the folder of a run")
    hint = nearest(name, recipe_names()) or "; `detrkit recipes` lists the known ones"
    raise UserError(f"{name}: there is no such file or folder, and no known recipe of that name{hint}")


def load_run_recipe(
    run: Path, overrides: Sequence[str] = (), *, trust: bool = False, named: Collection[str] = ()
) -> Recipe:
    """As `load_recipe`, for the recipe.toml of a run, which may be anybody's.

    named: imports of a recipe that a person named beside it, which are run anyway.
    """
    reader, path = Reader(named=named), run / RUN_RECIPE
    return _loaded(reader, reader.read(path), recipe_name(path), display_name(path), overrides, run=run, trust=trust)


def parse_recipe(text: str, path: Path, overrides: Sequence[str] = (), *, run: Path, trust: bool = False) -> Recipe:
    """As `load_run_recipe`, for a recipe (TOML) inside a file `path` of a run, in the metadata of weights say."""
    reader, told = Reader(), f"{path} (the one inside)"
    name = recipe_name(run / RUN_RECIPE)
    return _loaded(reader, reader.read_text(text, path, told), name, told, overrides, run=run, trust=trust)


def _loaded(
    reader: Reader,
    document: Document,
    name: str,
    told: str,
    overrides: Sequence[str],
    *,
    run: Path | None,
    trust: bool,
) -> Recipe:
    over, problems = parse_overrides(overrides)
    reader.take_imports(over, Path("command line"), named=True)
    require_trust(reader.strange, run, trust=trust)
    load_registered_parts()
    reader.import_parts()
    layer = merge(document.merged(), over, implied_type)
    if reader.imports:
        layer.values["imports"] = list(reader.imports)
        layer.sources["imports",] = list(reader.imports.values())[-1]  # bases stand before what is laid over them
    merged_from = [one.values for one in (*document.layers(), over)]
    problems = [*reader.problems, *problems]
    return _checked(name, layer, problems, told=told, complete=not reader.problems, merged_from=merged_from)


def _checked(
    name: str,
    layer: Layer,
    problems: Sequence[Problem],
    *,
    told: str | None = None,
    complete: bool = True,
    merged_from: Sequence[Mapping[str, Any]],
) -> Recipe:
    checker = Checker(layer, complete, merged_from)
    sections = checker.check()
    told_of = {(problem.file, problem.key) for problem in problems}  # what it was taken for is no second mistake
    found = [problem for problem in checker.problems if (problem.file, problem.key) not in told_of]
    if problems or found:
        raise RecipeError(told or name, _in_order_of_lines(dict.fromkeys([*problems, *found])))
    return Recipe(name=name, values=layer.values, sections=sections, sources=layer.sources)


def _in_order_of_lines(problems: Iterable[Problem]) -> list[Problem]:
    problems = list(problems)
    files = list(dict.fromkeys(problem.file for problem in problems))
    return sorted(problems, key=lambda problem: (files.index(problem.file), problem.line or 0))


def _left_out(values: Any, checked: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The keys of tables of parts that are said and are not among the checked parts."""
    if isinstance(checked, Factory):
        checked = checked.parts
    elif dataclasses.is_dataclass(checked):
        checked = vars(checked)
    elif path and isinstance(checked, Mapping) and isinstance(values, Mapping):
        yield from ((*path, key) for key in values if key not in checked)
    if isinstance(values, Mapping) and isinstance(checked, Mapping):
        for key in [key for key in values if key in checked]:
            yield from _left_out(values[key], checked[key], (*path, key))


def _step(value: Any, part: str | int) -> Any:
    """One step down from a section, a part or a plain table; REQUIRED if there is nothing."""
    if isinstance(value, Factory):
        return {"type": value.name, **value.options, **value.parts}.get(str(part), REQUIRED)
    if isinstance(value, Mapping):
        return value.get(part, REQUIRED)
    if isinstance(value, (list, tuple)):
        index = int(part) if str(part).isdecimal() else len(value)
        return value[index] if index < len(value) else REQUIRED
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}.get(str(part), REQUIRED)
    return REQUIRED
