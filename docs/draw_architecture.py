"""Draws docs/floors.svg and docs/loop.svg from the code's own names: `python docs/draw_architecture.py`.

Floors come from the import contract in pyproject.toml, slots and parts from the registry; tests/test_docs.py holds the
pictures to what this would draw now.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

from detrkit.recipe import registry

HERE = Path(__file__).resolve().parent
INK, SOFT, LINE, GROUND, CARD = "#1d1d1f", "#5c5c66", "#b9b9c2", "#fafafa", "#ffffff"
BANDS = ("#e8eefb", "#e6f4ef")
CHARACTER, ROW, PAD = 7.3, 18, 10  # of 12 px monospaced text

COLUMNS = {
    "features": ["data", "augment", "backbone"],
    "memory": ["position", "encoder"],
    "queries": ["queries", "block"],
    "each decoder layer looks": ["query_position", "self_attention", "cross_attention", "term", "self_term"],
    "predicts, and moves": ["head", "geometry"],
    "losses": ["matcher", "cost", "loss"],
}
"""The loop, left to right: what is there after each step, and the slots whose parts make it."""
AROUND = ("decoder", "detector", "parameter_rule")
"""Slots whose parts hold the others."""
NOT_DRAWN = ("checkpoint_names",)
"""Slots that have no place in the loop."""


def text(x: float, y: float, words: str, *, size: int = 12, weight: str = "normal", colour: str = INK) -> str:
    """One line of text that begins at (x, y)."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'xml:space="preserve">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A rounded rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" '
        f'stroke="{LINE}" stroke-width="1"/>'
    )


def picture(width: float, height: float, title: str, shapes: list[str]) -> str:
    """A whole SVG, with its own ground, so that it reads on light and dark pages."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" role="img">'
        f"<title>{escape(title)}</title>"
        '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        f'<path d="M0,0 L9,4 L0,8 z" fill="{SOFT}"/></marker></defs>'
        f'<rect width="{width:g}" height="{height:g}" fill="{GROUND}"/>'
    )
    return "\n".join([head, *shapes, "</svg>"]) + "\n"


def floors() -> list[list[str]]:
    """The rooms of each floor, highest first, by their short names; "|" between those that do not know each other."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [one for one in project["tool"]["importlinter"]["contracts"] if one["name"] == "Floors"]
    words = [layer.replace("|", " | ").replace(":", " ").split() for layer in contract["layers"]]
    return [[word.removeprefix("detrkit.") for word in row] for row in words]


def draw_floors(width: float = 860) -> str:
    """One band for each floor; a room imports what lies below it."""
    shapes, y = [], 16.0
    rules = ["A room imports from the floors below it, never from one above.", "Rooms with a bar between do not know "
             "each other; others of a floor may."]  # fmt: skip
    for rule in rules:
        shapes.append(text(20, y + 12, rule, colour=SOFT))
        y += ROW
    y += PAD
    for index, rooms in enumerate(floors()):
        cards, x, top = [], 34.0, y + PAD
        for room in rooms:
            if room == "|":
                cards.append(f'<rect x="{x + 4:g}" y="{top - 4:g}" width="3" height="{ROW + PAD + 8}" fill="{SOFT}"/>')
                x += 11 + PAD
                continue
            wide = len(room) * CHARACTER + 2 * PAD
            if x + wide > width - 34:
                x, top = 34.0, top + ROW + 2 * PAD
            cards += [box(x, top, wide, ROW + PAD, CARD), text(x + PAD, top + ROW, room)]
            x += wide + PAD
        height = top + ROW + 2 * PAD - y
        shapes += [box(20, y, width - 40, height, BANDS[index % 2]), *cards]
        y += height + 6
    return picture(width, y + 12, "The floors of detrkit", shapes)


def draw_loop() -> str:
    """A column for each step of the loop, a card for each slot, a line for each part that ships."""
    registry.load_registered_parts()
    placed = {slot for slots in COLUMNS.values() for slot in slots} | {*AROUND, *NOT_DRAWN}
    if strange := placed ^ set(registry.slots()):
        raise ValueError(f"say in COLUMNS, AROUND or NOT_DRAWN where these slots are, or that they are gone: {strange}")
    shapes: list[str] = []
    x, tallest, middle = 20.0, 0.0, 110.0
    places: dict[str, tuple[float, float, float]] = {}
    for result, slots in COLUMNS.items():
        own = {slot: own_parts(slot) for slot in slots}
        names = [result, *slots, *(name for listed in own.values() for name in listed)]
        wide = max(len(name) for name in names) * CHARACTER + 3 * PAD
        shapes.append(text(x, middle - 24, result, weight="bold", colour=SOFT))
        y = middle
        for slot, listed in own.items():
            height = ROW * (len(listed) + 1) + 2 * PAD
            shapes += [box(x, y, wide, height, CARD), text(x + PAD, y + ROW, slot, weight="bold")]
            shapes += [text(x + 2 * PAD, y + ROW * (row + 2), name) for row, name in enumerate(listed)]
            places[slot] = x, y, wide
            y += height + PAD
        tallest = max(tallest, y)
        if result != list(COLUMNS)[-1]:
            shapes.append(arrow(f"M{x + wide + 3:g},{middle + 14:g} L{x + wide + 25:g},{middle + 14:g}"))
        x += wide + 28
    (start, _, first), (end, _, last) = places["query_position"], places["geometry"]
    low = tallest + 10
    left, right = start + first / 2, end + last / 2
    below = places["geometry"][1] + ROW * (len(own_parts("geometry")) + 1) + 2 * PAD
    path = f"M{right:g},{below:g} L{right:g},{low:g} L{left:g},{low:g} L{left:g},{tallest - 6:g}"
    shapes += [arrow(path), text(left + 14, low - 6, "the next layer's reference", colour=SOFT)]
    frame = box(start - 9, middle - 46, end + last - start + 18, low + 12 - middle + 46, BANDS[0])
    runners = "; ".join(f"{slot}: {', '.join(own_parts(slot))}" for slot in AROUND)
    lines = ["One loop; each card is a slot, each line below its name a part. Shaded: once for each decoder layer.",
             f"Slots around the loop: {runners}."]  # fmt: skip
    notes = [text(20, 24 + ROW * row, line, colour=SOFT) for row, line in enumerate(lines)]
    return picture(x, low + 28, "The loop of detrkit", [frame, *notes, *shapes])


def own_parts(slot: str) -> list[str]:
    """The names of detrkit's own parts of a slot, in order."""
    return sorted(name for name, part in registry.parts(slot).items() if is_own(part))


def is_own(part: object) -> bool:
    """Whether a part is detrkit's, and not another installed package's or a test's."""
    return getattr(part, "__module__", "").startswith("detrkit.")


def arrow(path: str) -> str:
    """A line with a tip."""
    return f'<path d="{path}" fill="none" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>'


def main() -> None:
    (HERE / "floors.svg").write_text(draw_floors(), encoding="utf-8")
    (HERE / "loop.svg").write_text(draw_loop(), encoding="utf-8")


if __name__ == "__main__":
    main()
