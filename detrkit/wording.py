"""Numbers and names in messages."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, name: str) -> str:
    """ "1 image", "3 images", "2 classes"; name: in the singular."""
    if count == 1:
        return f"1 {name}"
    return f"{count} {name}es" if name.endswith(("s", "x")) else f"{count} {name}s"


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
