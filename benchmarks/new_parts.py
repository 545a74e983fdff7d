"""The table of docs/new_parts.md: what each part of 2023 to 2026 costs in lines and time, and what it brings.

python benchmarks/new_parts.py

A part's gain on COCO is the difference of two published rows (detrkit/zoo/published.toml), by its authors. Its gain on
a proxy comes from `results/new_parts_{shapes,bccd}_HOST*.json`, each a `table.json` as `detrkit compare --baseline ...
--out` writes it, in which a recipe is named after its part, with slot: "03_loss_iou_aware"; of several tables the one
with more seeds of a part counts. What a training step takes comes from `new_parts_steps_HOST.json`, which
`detrkit benchmark --out` wrote.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detrkit.recipe.registry import load_registered_parts, parts
from detrkit.zoo.published import find_published

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from lines_per_system import code_lines, own_lines  # noqa: E402
from new_parts_list import NEW, NewPart  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PROXIES, HOSTS = ("shapes", "bccd"), {"sap": "SAP-DETR", "dino": "DINO", "two_stage": "DINO of two stages"}


def gain(record: Mapping[str, Any]) -> str:
    """A difference to the host with its interval, marked where that excludes zero; empty for the host.

    With one seed the interval is over images alone, and says nothing of recipes.
    """
    if "paired" not in record:
        return ""
    found = record["paired"]["differences"]["AP"]
    if found["low"] is None:
        return f"{found['value']:+.1f}"
    mark = "*" if found["excludes_zero"] else ""
    seeds = "" if record["paired"]["seeds"] else ", one seed"
    return f"{found['value']:+.1f}{mark} ({found['low']:+.1f} to {found['high']:+.1f}{seeds})"


def cost(record: Mapping[str, Any]) -> str:
    """How long a training step takes, the host's 1."""
    return f"{1 / record['ratio_to_first']['training step']['middle']:.2f}"


def measured(what: str, name: str, cell: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
    """A cell for each part of `results/new_parts_WHAT_HOST*.json`, of whose rows `name` is the key of their recipe."""
    found: dict[str, str] = {}
    for host, label in HOSTS.items():
        best: dict[str, Mapping[str, Any]] = {}
        for file in sorted(RESULTS.glob(f"new_parts_{what}_{host}*.json")):
            for record in json.loads(file.read_text(encoding="utf-8"))["rows"]:
                part = re.sub(r"^\d+_", "", record[name].rpartition("/")[2])
                best[part] = max(best.get(part, record), record, key=lambda one: len(one.get("seeds", ())))
        for part, record in best.items():
            told = cell(record)
            found[part] = f"{found[part]}; on {label} {told}" if part in found else told
    return found


def published_gain(part: NewPart) -> str:
    """Two published rows and their difference."""
    if part.published is None:
        return ""
    with_it, without = (find_published(keys) for keys in part.published)
    difference = f"{with_it['AP'] - without['AP']:+.1f}"
    return f"{without['AP']} to {with_it['AP']} ({difference}{', with more' if part.whole else ''})"


def main() -> None:
    load_registered_parts()
    found = {"step": measured("steps", "name", cost), **{name: measured(name, "recipe", gain) for name in PROXIES}}
    columns = ["part", "file", "lines", "lines of recipe", "checked against", "AP on COCO, published", *found]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for part in NEW:
        source = parts(part.slot)[part.name] if part.source is None else part.source
        lines = own_lines(source) if part.source is None else code_lines(inspect.getsource(source))
        file = Path(inspect.getsourcefile(source)).resolve().relative_to(ROOT)
        cells = [
            part.label,
            f"`{file}`",
            str(len(lines)),
            str(part.recipe.count("\n") + 1),
            part.checked,
            published_gain(part),
            *(of.get(part.key, "") for of in found.values()),
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
