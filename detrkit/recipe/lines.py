"""On which line of a TOML document each key stands: tomllib reads the values, but keeps no positions."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterable

KeyPath = tuple[str | int, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_KEY_PART = re.compile(_PART)
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{1,2}(?!"))?'
    r"|'''.*?'''(?:'{1,2}(?!'))?"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|[^,\]}\n#]+",  # numbers, booleans and dates ("1979-05-27 07:32:00" has a space)
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key, table header and list item of a document that tomllib has accepted.

    List items are named by their index: `("decoder", "terms", 1, "scale")`.
    """
    return _Scanner(text).scan()


class _Scanner:
    """Walks over the document once. It checks nothing: a document with faults never gets here."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.newlines = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[KeyPath, int] = {}
        self.table_counts: dict[KeyPath, int] = {}  # how many times each [[array of tables]] was opened

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self.skip_blank() < len(self.text):
            if self.text[self.position] == "[":
                table = self.header()
            else:
                self.pair(table)
        return self.lines

    def header(self) -> KeyPath:
        in_array = self.text.startswith("[[", self.position)
        line = self.line()
        self.position += 2 if in_array else 1
        self.skip_blank()
        *parents, last = self.key()
        path = (*self.resolve(parents), last)
        self.skip_blank()
        self.position += 2 if in_array else 1
        if in_array:
            self.note(path, line)
            self.table_counts[path] = self.table_counts.get(path, 0) + 1
        if path in self.table_counts:
            path = (*path, self.table_counts[path] - 1)
        self.note(path, line)
        return path

    def resolve(self, path: Iterable[str]) -> KeyPath:
        """Puts the current index behind each name of an array of tables."""
        resolved: KeyPath = ()
        for part in path:
            resolved = (*resolved, part)
            if resolved in self.table_counts:
                resolved = (*resolved, self.table_counts[resolved] - 1)
        return resolved

    def pair(self, table: KeyPath) -> None:
        line = self.line()
        path = (*table, *self.key())
        for length in range(len(table) + 1, len(path) + 1):
            self.note(path[:length], line)
        self.skip_blank()
        self.position += 1  # the equals sign
        self.skip_blank()
        self.value(path)

    def value(self, path: KeyPath) -> None:
        opening = self.text[self.position]
        if opening not in "[{":
            self.position = self.match(_SCALAR).end()
            return
        self.position += 1
        index = 0
        while self.skip_blank(commas=True) < len(self.text) and self.text[self.position] not in "]}":
            if opening == "[":
                self.note((*path, index), self.line())
                self.value((*path, index))
                index += 1
            else:
                self.pair(path)
        self.position += 1

    def key(self) -> list[str]:
        match = self.match(_KEY)
        self.position = match.end()
        return [_unquote(part) for part in _KEY_PART.findall(match.group())]

    def skip_blank(self, *, commas: bool = False) -> int:
        self.position = self.match(_BLANK).end()
        while commas and self.text.startswith(",", self.position):
            self.position += 1
            self.position = self.match(_BLANK).end()
        return self.position

    def match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """What stands here; tomllib has made sure of it."""
        found = pattern.match(self.text, self.position)
        assert found is not None
        return found

    def line(self) -> int:
        return bisect_left(self.newlines, self.position) + 1

    def note(self, path: KeyPath, line: int) -> None:
        self.lines.setdefault(path, line)


def _unquote(part: str) -> str:
    return tomllib.loads(f"key = {part}")["key"] if part[0] in "\"'" else part
