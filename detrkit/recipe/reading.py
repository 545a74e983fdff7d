"""Reading recipe files: TOML, inheritance by `extends`, and a recipe's own `imports`."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detrkit.errors import UserError
from detrkit.paths import with_home
from detrkit.recipe.layers import Layer, is_too_deep, merge
from detrkit.recipe.library import display_name, find_recipe, is_known, recipe_names
from detrkit.recipe.lines import KeyPath, key_lines
from detrkit.recipe.parameters import implied_type
from detrkit.recipe.problems import Problem, Source, dotted, format_value, nearest

OWN_KEYS = ("title", "description", "reproduces")  # true of the file that says them, not of those that extend it


@dataclass(frozen=True)
class Document:
    """A recipe file and what it extends, not merged yet: merging asks the parts, and `imports` may bring some."""

    own: Layer
    bases: tuple[Document, ...] = ()

    def merged(self) -> Layer:
        """The file laid over its bases, as `layers` says."""
        layer = Layer()
        for over in self.layers():
            for key in OWN_KEYS:
                layer.values.pop(key, None)
            layer = merge(layer, over, implied_type)
        return layer

    def layers(self) -> list[Layer]:
        """What is laid over one another, the lowest first.

        A later base stands over an earlier one, without what both stand on: laid again, that would undo what the
        earlier one says.
        """
        laid: list[Layer] = []
        for base in self.bases:
            known, over = {id(layer) for layer in laid}, base.layers()
            common = next((count for count, layer in enumerate(over) if id(layer) not in known), len(over))
            laid += over[common:]
        return [*laid, self.own]


@dataclass
class Reader:
    """Reads a recipe and all its bases, and collects what goes wrong on the way."""

    folder: Path | None = None
    """of the recipe that a person named, resolved: what is said there and below is named too; None for a run's"""
    named: Collection[str] = ()
    """imports that a person named elsewhere"""
    problems: list[Problem] = field(default_factory=list)
    imports: dict[str, Source] = field(default_factory=dict)
    strange: dict[str, Source] = field(default_factory=dict)
    """the imports that a person did not name"""
    known: dict[Path, Document] = field(default_factory=dict)
    """the files that were read, so that each is read once"""

    def read(self, path: Path, chain: tuple[Path, ...] = ()) -> Document:
        """A file with its bases. chain: the files that extend it, outermost first."""
        path = path.resolve()
        if path not in self.known:
            shown = display_name(path)
            self.known[path] = self._document(path, shown, self._text(path, shown), chain)
        return self.known[path]

    def read_text(self, text: str, path: Path, shown: str) -> Document:
        """A recipe that is kept inside the file `path`; `shown` is what messages call it."""
        return self._document(path.resolve(), shown, text, ())

    def _document(self, path: Path, shown: str, text: str, chain: tuple[Path, ...]) -> Document:
        document, lines = self._parse(text, Source(shown))
        sources = {key: Source(shown, line) for key, line in lines.items()} | {(): Source(shown)}
        own = Layer(document, sources)
        self._require_on_top(own, own.values)
        names = self._take_names(own, "extends", single=True)
        said = own.source(("extends",))
        bases = [self._read_base(name, said, path, (*chain, path)) for name in names]
        self.take_imports(own, path, named=self._is_named(path))
        return Document(own, tuple(base for base in bases if base is not None))

    def _require_on_top(self, own: Layer, table: dict[str, Any], path: KeyPath = ()) -> None:
        """In TOML, all that follows a table's header is the table's: easily forgotten of what a file says of itself."""
        for name, inner in [(name, inner) for name, inner in table.items() if isinstance(inner, dict)]:
            here = (*path, name)
            for key in ("extends", "imports"):
                if isinstance(inner.get(key), (str, list)):
                    message = f"stands in the table [{dotted(here)}]; {key} stands above the first [table] of a file"
                    self.report(own.source((*here, key)), dotted((*here, key)), message)
            self._require_on_top(own, inner, here)

    def report(self, source: Source, key: str, message: str) -> None:
        self.problems.append(Problem(source.file, source.line, key, message))

    def take_imports(self, layer: Layer, path: Path, *, named: bool) -> None:
        """Takes `imports` out of a layer that stands in the file `path`, to which .py files are relative."""
        for name in self._take_names(layer, "imports"):
            found, source = str(_beside(path, name) or name), layer.source(("imports",))
            self.imports.setdefault(found, source)
            if named or found in self.named:
                self.strange.pop(found, None)
            else:
                self.strange.setdefault(found, source)

    def _is_named(self, path: Path) -> bool:
        known = is_known(path)  # it came with an installed package
        return known or (self.folder is not None and path.is_relative_to(self.folder))

    def _text(self, path: Path, shown: str) -> str:
        try:
            return path.read_text(encoding="utf-8-sig")  # some programs of Windows put a mark before a text
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 text, as TOML has to be: byte {error.start} is {error.reason}"
            self.report(Source(shown), "", reason)
        except OSError as error:
            self.report(Source(shown), "", f"cannot be read: {error.strerror}")
        return ""

    def _parse(self, text: str, source: Source) -> tuple[dict[str, Any], dict]:
        text = text.replace("\r\n", "\n")
        try:
            values = tomllib.loads(text)
            if is_too_deep(values):
                raise RecursionError
            return values, key_lines(text)
        except tomllib.TOMLDecodeError as error:
            # The line is part of the message; an attribute for it came only with Python 3.14.
            found = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
            line = int(found[1]) if found else text.rstrip().count("\n") + 1
            column = f" (column {found[2]})" if found else ""
            message = str(error).replace(found[0], "") if found else str(error)
            self.report(Source(source.file, line), "", f"is not TOML: {message}{column}")
        except RecursionError:
            self.report(source, "", "is nested too deeply")
        return {}, {}

    def _take_names(self, layer: Layer, key: str, *, single: bool = False) -> list[str]:
        """Takes a list of strings out of the layer; with `single`, one string will do too."""
        value = layer.values.pop(key, [])
        names = [value] if single and isinstance(value, str) else value
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
        accepted = "the name of a recipe or a list of names" if single else "a list of module names or .py files"
        self.report(layer.source((key,)), key, f"is {format_value(value)}, should be {accepted}")
        return []

    def _read_base(self, name: str, said: Source, path: Path, chain: tuple[Path, ...]) -> Document | None:
        # A recipe may extend a known one of its own name.
        try:
            given = with_home(name)
        except UserError as error:
            self.report(said, "extends", str(error) if name else "is empty, should be the name of a recipe")
            return None
        candidates = [path.parent / given, path.parent / f"{given}.toml", find_recipe(name.removesuffix(".toml"))]
        found = [c.resolve() for c in candidates if c is not None and c.is_file()]
        base = next((c for c in found if c != path), found[0] if found else None)
        if base is None:
            hint = nearest(name, recipe_names())
            if (path.parent / given).is_dir():
                hint = "; there is a folder of that name: name a .toml file in it"
            self.report(said, "extends", f"there is no recipe {format_value(name)} beside this file or by name{hint}")
            return None
        if base in chain:
            circle = " extends ".join(display_name(each) for each in (*chain[chain.index(base) :], base))
            self.report(said, "extends", f"goes in a circle: {circle}")
            return None
        return self.read(base, chain)

    def import_parts(self) -> None:
        """Imports the recipes' own modules, so that the parts in them are registered."""
        for name, source in self.imports.items():
            try:
                _import(name)
            except Exception as error:  # whatever a person's own module raises is theirs to mend
                self.report(source, "imports", f"importing {name} failed{_told(name, error)}")


def _told(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return f": Python finds no module {error.name}; install it, or give a .py file relative to the recipe"
    # A syntax error says its line itself.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    return f"{f' at line {lines[-1]}' if lines else ''}: {type(error).__name__}: {error}"


def _beside(path: Path, name: str) -> Path | None:
    """The file that an import names, relative to the recipe; None if it names an installed module."""
    if name.endswith(".py"):
        return (path.parent / name).resolve()
    beside = path.parent / f"{name}.py"
    return beside.resolve() if beside.is_file() else None


def _import(name: str) -> None:
    if not name.endswith(".py"):
        if not all(part.isidentifier() for part in name.split(".")):
            raise ImportError(f'"{name}" is no name of a module, and no .py file')
        importlib.import_module(name)
        return
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # Found by name and not by path alone, so that the workers of a data loader can import it as well.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.import_module(path.stem)
    if Path(module.__file__ or "").resolve() != path:
        raise ImportError(f'another module is named "{path.stem}": {module.__file__}; give this file another name')
