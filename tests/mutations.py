"""What one change at a time makes of the functions of a module (see `tests.mutants`)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import libcst as cst
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[1]
GPU_ONLY = {"device", "non_blocking", "strict"}  # arguments that nobody misses on a CPU, or where lengths agree
OPPOSITES = [
    *(("minimum", "maximum"), ("min", "max"), ("amin", "amax"), ("low", "high"), ("sin", "cos"), ("all", "any")),
    *(("zeros", "ones"), ("zeros_like", "ones_like"), ("new_zeros", "new_ones")),
]
SWAPS = {**dict(OPPOSITES), **{b: a for a, b in OPPOSITES}}


class Mutant(NamedTuple):
    module: str
    function: str
    change: str
    code: str

    def __str__(self) -> str:
        return f"{self.module}: {self.function}: {self.change}"


def changed(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """What a node becomes, one change at a time; without those that only ever crash."""
    for kind, operator in mutation_operators:
        if isinstance(node, kind) and not isinstance(node, cst.Assign | cst.AnnAssign):
            yield from (other for other in operator(node) if wanted(node, other))
    if isinstance(node, cst.Name) and node.value in SWAPS:
        yield node.with_changes(value=SWAPS[node.value])
    if isinstance(node, cst.If):
        inside = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inside))


def wanted(node: cst.CSTNode, other: cst.CSTNode) -> bool:
    if isinstance(node, cst.Call) and isinstance(other, cst.Call):  # an argument dropped, not one that becomes None
        dropped = [arg for arg in node.args if arg not in other.args]
        return len(other.args) < len(node.args) and not any(on_gpu_only(arg) for arg in dropped)
    if isinstance(node, cst.SimpleString) and isinstance(other, cst.SimpleString):  # a name changed, not a text
        return " " not in node.value and "XX" in other.value
    return True


def on_gpu_only(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value in GPU_ONLY


def nodes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Those of a function's body that are looked at."""
    if isinstance(node, cst.Raise | cst.Annotation | cst.FormattedString) or on_gpu_only(node):
        return
    yield node
    for child in node.body.children if isinstance(node, cst.FunctionDef) else node.children:
        yield from nodes(child)


def functions(body: cst.CSTNode, owner: str = "") -> Iterator[tuple[str, cst.FunctionDef]]:
    for child in body.children:
        if isinstance(child, cst.FunctionDef):
            yield owner + child.name.value, child
        elif isinstance(child, cst.ClassDef):
            yield from functions(child.body, f"{owner}{child.name.value}.")


def mutants_of(module: str, seed: int) -> tuple[int, Iterator[Mutant]]:
    """How many there are, and all of them in a random order."""
    tree = cst.parse_module((ROOT / module).read_text())
    changes = [(*f, node, other) for f in functions(tree) for node in nodes(f[1]) for other in changed(node)]
    random.Random(seed).shuffle(changes)

    def made() -> Iterator[Mutant]:
        for name, function, node, other in changes:
            mutated = function.deep_replace(node, other)
            change = difference(tree.code_for_node(function), tree.code_for_node(mutated))
            yield Mutant(module, name, change, tree.deep_replace(function, mutated).code)

    return len(changes), made()


def difference(before: str, after: str) -> str:
    """The lines that differ, as one line."""
    old, new = before.splitlines(), after.splitlines()
    start = shared(old, new)
    end = shared(old[start:][::-1], new[start:][::-1])
    return "  ->  ".join(" ".join(map(str.strip, lines[start : len(lines) - end])) for lines in (old, new))


def shared(old: list[str], new: list[str]) -> int:
    """How many lines are the same from the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
