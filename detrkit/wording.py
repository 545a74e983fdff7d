"""Numbers and names in messages."""

from __future__ import annotations


def counted(count: int, name: str) -> str:
    """ "1 image", "3 images", "2 classes"; name: in the singular."""
    if count == 1:
        return f"1 {name}"
    return f"{count} {name}es" if name.endswith(("s", "x")) else f"{count} {name}s"
