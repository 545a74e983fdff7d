"""Numbers and names in messages."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

_JOINERS = "\u200c\u200d"  # of letters in some scripts, and of emoji


def counted(count: int, name: str) -> str:
    """ "1 image", "3 images", "2 classes"; name: in the singular."""
    if count == 1:
        return f"1 {name}"
    return f"{count} {name}es" if name.endswith(("s", "x")) else f"{count} {name}s"


def percent(share: float | None) -> str:
    """A share in percent, "43.1"; "-" where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def score(threshold: float) -> str:
    """A threshold as it is typed: "0.50", and "0.005" where two digits would say another one."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else f"{threshold:.6g}"


def short(minutes: float) -> str:
    """Minutes as a person says them: "125", "12", "3", and "0.14" of a short run."""
    return f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.2g}"


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def typed(path: Path | str) -> str:
    """A path as a person types it in a command: in quotes where it has spaces, say, and not as an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def visible(text: str) -> str:
    """The text with what a terminal would obey, control characters above all, written as \\x1b; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" + _JOINERS else _escaped(one) for one in text)


def in_a_line(name: str, most: int = 120) -> str:
    """A name, which may be anything, as it can stand in a picture or a title: visible, in one line, not too long."""
    line = visible(" ".join(name.split()))
    return line if len(line) <= most else f"{line[: most - 9]}…{line[-8:]}"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
