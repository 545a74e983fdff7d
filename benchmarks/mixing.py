"""Which part of 2023 to 2026 goes with which system: the table of docs/mixing.md; minutes.

python benchmarks/mixing.py

Each part is added to the recipe of each base, and the detector built and trained for a step, or refused with a reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import detrkit
from detrkit.engine.rehearsal import rehearse
from detrkit.errors import UserError
from detrkit.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from new_parts_list import NEW, NewPart  # noqa: E402

from tests.small import SMALL  # noqa: E402

CLASSES = 5
BASES = {
    "DETR": "detr_r50_500ep",
    "Conditional": "conditional_detr_r50_50ep",
    "SMCA": "smca_detr_r50_50ep",
    "Anchor": "anchor_detr_r50_50ep",
    "DAB": "dab_detr_r50_50ep",
    "DN": "dn_detr_r50_12ep",
    "SAM": "sam_detr_r50_50ep",
    "Deformable": "deformable_detr_r50_50ep",
    "two stages": "deformable_detr_4scale_two_stage_r50_50ep",
    "DINO": "dino_4scale_r50_12ep",
    "Group": "group_detr_r50_12ep",
    "RT-DETR": "rt_detr_r50_72ep",
    "SAP": "sap_detr_r50_50ep",
    "SAP + DINO": "sap_dino_4scale_r50_12ep",
}
"""Columns of the mixing table, and their recipes."""


def recipe_of(part: NewPart, base: str, folder: Path, *overrides: str) -> Recipe:
    """A recipe with a part added, as a file over its base.

    Raises:
        UserError: it says what the base's parts do not take.
    """
    positions = detrkit.load_recipe(base).values["decoder"].get("positions", [])
    every = ", ".join([*(json_toml(one) for one in positions), "'relation'"])
    text = part.recipe.replace("{positions}", f"[{every}]")
    file = folder / f"{part.key}_on_{base}.toml"
    file.write_text(f'extends = "{base}"\ntitle = "{part.key}"\n{text}\n', encoding="utf-8")
    return detrkit.load_recipe(file, [*SMALL, f"detector.classes={CLASSES}", *overrides])


def json_toml(value: Any) -> str:
    """A value of a recipe as TOML writes it inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def refusal(part: NewPart, base: str, folder: Path) -> str | None:
    """Why a part does not go with a base; None where nothing refuses to predict and to take losses together."""
    try:
        recipe = recipe_of(part, base, folder)
        detector, criterion = detrkit.build_detector(recipe), detrkit.build_criterion(recipe)
        rehearse(detector, criterion, name=base)
    except UserError as error:
        return bare(error)
    train_a_step(detector, criterion)
    return None


def bare(error: UserError) -> str:
    """What an error says in one line, without the recipe's file, line and key: they differ between bases."""
    told = str(error).partition("go together: ")[2] or str(error)
    if error.is_placed:
        told = told.split(": ", 2)[2]
    return " ".join(told.split())


def train_a_step(detector: nn.Module, criterion: nn.Module) -> None:
    """On two images of noise with three and no objects; what fails here is a fault, and ends the program.

    Raises:
        AssertionError: the loss or a gradient is not finite, or few weights have changed.
    """
    torch.manual_seed(0)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 64:] = True
    targets = [
        {"labels": torch.randint(0, CLASSES, (count,)), "boxes": 0.2 + 0.3 * torch.rand(count, 4)} for count in (3, 0)
    ]
    trained = [p for p in detector.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    total = criterion(detector.train()(torch.randn(2, 3, 96, 128), mask, targets), targets)["total"]
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained)
    torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0).step()
    changed = sum(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))
    # Not all do: behind a layer that starts at zero nothing arrives in the first step.
    assert changed > len(trained) / 2, f"only {changed} of {len(trained)} parameters have changed"


def mixing(wanted: Callable[[str, str], bool] = lambda part, base: True) -> Iterator[tuple[NewPart, str, str | None]]:
    """Part, name of the base and why not, for each pair that is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        for part in NEW:
            for name, base in BASES.items():
                if wanted(part.label, name):
                    yield part, name, refusal(part, base, Path(folder))


def main() -> None:
    reasons: dict[str, int] = {}
    print("| part | " + " | ".join(BASES) + " |\n| --- |" + " --- |" * len(BASES))
    cells: dict[str, list[str]] = {}
    for part, _, reason in mixing():
        number = "" if reason is None else f"({reasons.setdefault(reason, len(reasons) + 1)})"
        cells.setdefault(part.label, []).append(number or "yes")
    for label, row_cells in cells.items():
        print(f"| {label} | " + " | ".join(row_cells) + " |")
    print()
    for reason, number in reasons.items():
        print(f"({number}) {reason}  ")


if __name__ == "__main__":
    main()
