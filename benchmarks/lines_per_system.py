"""Lines of code that each system adds: the parts that no earlier system has, and its recipe.

python benchmarks/lines_per_system.py            # a Markdown table, as in docs/systems.md

A part counts with its class, and its module's helpers count with the module's first part. Blank lines, comments and
docstrings do not count. The first system's parts are what every detector needs; those that follow add to them.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import detrkit
from detrkit.recipe import Factory, library
from detrkit.recipe.registry import parts, slots

SYSTEMS = [
    "detr",
    "deformable_detr",
    "conditional_detr",
    "smca_detr",
    "anchor_detr",
    "dab_detr",
    "dn_detr",
    "sam_detr",
    "dino",
    "group_conditional_detr",
    "h_deformable_detr",
    "sap_detr",
    "sap_dn",
    "sap_dino",
    "sap_group",
    "stable_dino",
    "align_detr",
    "ddq_detr",
    "rank_detr",
    "sap_stable_dino",
    "sap_align_detr",
    "rt_detr",
    "sap_hybrid",
    "ms_deformable_detr",
    "relation_dino",
    "relation_detr",
    "faster_rcnn",
]
"""Base recipes, in order of publication; last the one that is no DETR."""
OTHER = ("data", "checkpoint_names")
"""slots whose parts are none of the model's"""


def code_lines(source: str) -> set[int]:
    """The lines of Python source that are neither blank nor comment nor docstring."""
    tree = ast.parse(source)
    texts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts |= set(range(node.lineno, node.end_lineno + 1))
    lines = source.splitlines()
    return {n for n, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"} - texts


def own_lines(build: Callable) -> set[tuple[str, int]]:
    """The lines of a part: its class, and what its module holds beside registered parts."""
    path = inspect.getsourcefile(build)
    source = Path(path).read_text(encoding="utf-8")
    registered = {
        part.__name__ for slot in slots() for part in parts(slot).values() if part.__module__ == build.__module__
    }
    lines = code_lines(source)
    for node in ast.parse(source).body:
        name = getattr(node, "name", None)
        if name in registered and name != build.__name__:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            lines -= set(range(first, node.end_lineno + 1))
    return {(path, line) for line in lines}


def factories(value: Any) -> Iterator[Factory]:
    """All parts of a recipe's section, nested ones too."""
    if isinstance(value, Factory):
        yield value
        yield from factories(value.parts)
    elif isinstance(value, dict) or hasattr(value, "values"):
        for inner in value.values():
            yield from factories(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from factories(inner)


def main() -> None:
    known: set[tuple[str, int]] = set()
    print("| system | its own parts | lines of them | lines of recipe |\n| --- | --- | --- | --- |")
    seen: set[str] = set()
    for system in SYSTEMS:
        recipe = detrkit.load_recipe(f"base/{system}")
        used = [f for section in recipe.sections.values() for f in factories(section) if f.slot not in OTHER]
        new = {f"{f.slot} `{f.name}`": f.build for f in used if f"{f.slot} `{f.name}`" not in seen}
        lines = set().union(*(own_lines(build) for build in new.values())) - known if new else set()
        known |= lines
        seen |= set(new)
        text = library.find_recipe(f"base/{system}").read_text(encoding="utf-8").splitlines()
        written = [line for line in text if line.strip() and not line.strip().startswith("#")]
        names = ", ".join(sorted(new)) if system != SYSTEMS[0] else f"the {len(new)} that every system starts from"
        print(f"| {system} | {names or 'none'} | {len(lines)} | {len(written)} |")


if __name__ == "__main__":
    sys.exit(main())
