"""What docstrings say, read for the pages of docs/build_site.py: paragraphs, needs, and what each option means."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any

SECTION = re.compile(r"^(Args|Raises|Returns):\s*$")
ENTRY = re.compile(r"^(?P<names>\w+(?:, \w+)*): *(?P<said>.*)$")


@dataclass(frozen=True)
class Doc:
    """A docstring taken apart.

    summary: its first paragraph. body: the others. needs: those of them that begin with "Needs". options: what its
    Args say, by name; raised: what its Raises say.
    """

    summary: str
    body: tuple[str, ...]
    needs: tuple[str, ...]
    options: dict[str, str]
    raised: dict[str, str]


def read_docstring(text: str | None) -> Doc:
    """A docstring as Google's style has it."""
    paragraphs: list[str] = []
    entries: dict[str, dict[str, str]] = {"Args": {}, "Raises": {}, "Returns": {}}
    section, lines, names = "", [], []
    for line in [*inspect.cleandoc(text or "").splitlines(), ""]:
        if found := SECTION.match(line):
            section = found[1]
        elif section and line.startswith(" "):
            entry = ENTRY.match(line[4:])
            if entry:
                names = entry["names"].split(", ")
                entries[section] |= dict.fromkeys(names, entry["said"])
            else:
                entries[section] |= {name: f"{entries[section][name]} {line.strip()}".strip() for name in names}
        elif line:
            section = ""
            lines.append(line)
        elif lines:
            paragraphs.append("\n".join(lines) if lines[0].startswith("    ") else " ".join(lines))
            lines = []
    summary, *rest = paragraphs or [""]
    needs = tuple(one for one in rest if one.startswith("Needs "))
    body = tuple(one for one in rest if one not in needs)
    return Doc(summary, body, needs, entries["Args"], entries["Raises"])


@cache
def attribute_docs(owner: type) -> dict[str, str]:
    """What stands below the attributes of a class, those of its bases included."""
    found: dict[str, str] = {}
    for one in reversed(owner.__mro__):
        if one.__module__.startswith("detrkit."):
            found |= _own_attribute_docs(one)
    return found


def _own_attribute_docs(owner: type) -> dict[str, str]:
    [node] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for before, after in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        target = before.target if isinstance(before, ast.AnnAssign) else None
        if isinstance(before, ast.Assign):
            [target] = before.targets
        if isinstance(target, ast.Name):
            found[target.id] = " ".join(inspect.cleandoc(str(after.value.value)).split())
    return found


def meanings(build: Callable[..., Any]) -> dict[str, str]:
    """What each option of a part, or of a dataclass of options, means; a class takes over what its bases say."""
    if not inspect.isclass(build):
        return read_docstring(build.__doc__).options
    said = dict(attribute_docs(build))
    for one in reversed(build.__mro__):
        if one is build or one.__module__.startswith("detrkit."):
            said |= read_docstring(one.__doc__).options
    return said


def markdown(text: str) -> str:
    """Plain text of a docstring as Markdown that shows it unchanged; what stands in backticks is code."""
    if text.startswith("    "):
        return "\n".join(f"    {line}" for line in textwrap.dedent(text).splitlines())
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", text)
    return "".join(_code(one) if one.startswith("`") else _plain(one) for one in pieces)


def _code(text: str) -> str:
    return f"<code>{escape(text.strip('`'), quote=False).replace('|', '&#124;').replace('*', '&#42;')}</code>"


def _plain(text: str) -> str:
    text = re.sub(r"([\\*_\[\]{}])", r"\\\1", escape(text, quote=False)).replace("|", "&#124;")
    return re.sub(r"\^(\w+|\([^()]*\))", r"<sup>\1</sup>", text)
