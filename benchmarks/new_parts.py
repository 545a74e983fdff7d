"""The parts of 2023 to 2026: what each costs in lines, was checked against, is said to bring, and goes with.

python benchmarks/new_parts.py             # the table of docs/new_parts.md
python benchmarks/new_parts.py --mixing    # that of docs/mixing.md: each part on each base; minutes

A part's gain on COCO is the difference of two published rows (detrkit/zoo/published.toml), by its authors. Its gain on
a proxy comes from `results/new_parts_{shapes,bccd}_HOST.json`, each a `table.json` as `detrkit compare --baseline ...
--out` writes it, in which a recipe is named after its part, with slot: "03_loss_iou_aware"; what a training step takes,
from `new_parts_steps_HOST.json`, which `detrkit benchmark --out` wrote.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import detrkit
from detrkit import ranking, suppression
from detrkit.decoder_layer import ManyFirst
from detrkit.encoders.deformable import MemoryFusion
from detrkit.engine.rehearsal import rehearse
from detrkit.errors import UserError
from detrkit.queries.proposals import SecondProposals
from detrkit.queries.selection import by_rank
from detrkit.recipe import Recipe
from detrkit.recipe.registry import load_registered_parts, parts
from detrkit.zoo.published import find_published

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from lines_per_system import code_lines, own_lines  # noqa: E402

from tests.small import SMALL  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PROXIES, HOSTS = ("shapes", "bccd"), {"sap": "SAP-DETR", "dino": "DINO", "two_stage": "DINO of two stages"}

CLASSES = 5
Values = Mapping[str, Any]


class NewPart(NamedTuple):
    """A part, and what adds it to a recipe."""

    slot: str
    name: str
    recipe: str
    """the lines that add it, as a recipe over another has them; `{positions}` are the other's own"""
    checked: str
    published: tuple[Values, Values] | None = None
    """what a row of a published table has with the method, and what another has without"""
    whole: bool = False
    """whether that difference is of several parts together"""
    option: str = ""
    """which option of the part it is, where the rest is older"""
    source: Any = None
    """the module, class or function that does what this option says"""

    @property
    def label(self) -> str:
        return f"{self.slot} `{self.name}`" + (f", `{self.option}`" if self.option else "")

    @property
    def key(self) -> str:
        """What its recipe on a proxy is called; two parts share a name, none shares it in a slot."""
        return f"{self.slot}_{self.option or self.name}"


def row(table: str, method: str, epochs: int = 12) -> dict[str, Any]:
    return {"table": table, "method": method, "epochs": epochs}


DINO, H_DETR = row("dino", "DINO-4scale"), row("h_detr", "H-Deformable DETR++")
PLUS = row("h_detr", "Deformable DETR++, two stages")
STABLE = (row("stable_dino", "Stable-DINO-4scale"), DINO)
ALIGN = (row("align_detr", "Align-DETR"), DINO)
RANK = (row("rank_detr", "Rank-DETR"), H_DETR)
DEIM = (row("deim", "DEIM-RT-DETRv2-R50", 60), row("deim", "RT-DETRv2-R50", 72))

OFFICIAL = "the official code"
LOSSES = f"{OFFICIAL}: loss and gradients, `tests/model/test_quality.py`"

NEW = [
    NewPart("loss", "varifocal", "losses.class = { type = 'varifocal', weight = 1 }", LOSSES),
    NewPart("loss", "matchability", "losses.class = { type = 'matchability', weight = 1 }", LOSSES, DEIM, whole=True),
    NewPart("loss", "iou_aware", "losses.class = { type = 'iou_aware', weight = 1 }", LOSSES, ALIGN, whole=True),
    NewPart(
        "loss",
        "position_supervised",
        "losses.class = { type = 'position_supervised', weight = 6 }",
        LOSSES,
        STABLE,
        whole=True,
    ),
    NewPart("loss", "giou_aware", "losses.class = { type = 'giou_aware', weight = 2 }", LOSSES, RANK, whole=True),
    NewPart(
        "cost",
        "position_modulated",
        "matcher.costs.class = { type = 'position_modulated', weight = 2 }",
        f"{OFFICIAL}: its matrix, `tests/model/test_quality.py`",
        STABLE,
        whole=True,
    ),
    NewPart(
        "cost",
        "high_order",
        "matcher.costs.class = { type = 'high_order', weight = 1 }\n"
        "matcher.costs.box = 'none'\nmatcher.costs.giou = 'none'",
        f"{OFFICIAL}: its matrix, `tests/model/test_quality.py`",
        RANK,
        whole=True,
    ),
    NewPart(
        "matcher",
        "many_to_one",
        "matcher = { type = 'many_to_one', costs = { class = { type = 'focal' }, box = { type = 'l1' } } }\n"
        "losses.class = { type = 'iou_aware', weight = 1 }",
        f"{OFFICIAL}: pairs and losses, `tests/model/test_one_to_many.py`",
        ALIGN,
        whole=True,
    ),
    NewPart(
        "encoder",
        "deformable",
        "encoder.type = 'deformable'\nencoder.memory_fusion = true",
        f"{OFFICIAL}: output and gradients, `tests/model/test_memory_fusion.py`",
        STABLE,
        whole=True,
        option="memory_fusion",
        source=MemoryFusion,
    ),
    NewPart(
        "block",
        "hybrid",
        "blocks.hybrid = { type = 'hybrid', sets = 5, copies = 6 }",
        f"loops, and {OFFICIAL}'s repeated objects, `tests/model/test_one_to_many.py`",
        (H_DETR, PLUS),
    ),
    NewPart(
        "queries",
        "two_stage",
        "queries = { type = 'two_stage', content = 'learned' }",
        f"{OFFICIAL}: queries, `tests/model/test_one_to_many.py`",
        (PLUS, row("h_detr", "Deformable DETR, two stages")),
        whole=True,
        option="content",
        source=by_rank,
    ),
    NewPart(
        "decoder",
        "transformer",
        "decoder.ranked = 4000",
        f"{OFFICIAL}: outputs and gradients, `tests/model/test_ranking.py`",
        RANK,
        whole=True,
        option="ranked",
        source=ranking,
    ),
    NewPart(
        "block",
        "mixed",
        "blocks.mixed = { type = 'mixed' }",
        f"{OFFICIAL}: its pairs, `tests/model/test_one_to_many.py`",
    ),
    NewPart(
        "decoder",
        "transformer",
        "decoder.many_first = true\nblocks.mixed = { type = 'mixed', source = 'decoder' }",
        f"{OFFICIAL}: outputs and gradients, `tests/model/test_many_first.py`",
        ({**row("ms_detr", "MS-Deformable DETR++"), "queries": "300"}, PLUS),
        option="many_first",
        source=ManyFirst,
    ),
    NewPart(
        "self_term",
        "relation",
        "decoder.positions = {positions}\ndecoder.self_attention.terms = ['relation']",
        f"{OFFICIAL}: its numbers, `tests/model/test_one_to_many.py`",
        (row("relation_detr", "DINO++"), DINO),
    ),
    NewPart(
        "block",
        "hybrid",
        "queries.type = 'mixed_selection'\nblocks.hybrid = { type = 'hybrid', count = 40, copies = 6 }",
        f"{OFFICIAL}: a whole training step, `tests/model/test_relation_detr.py`",
        (row("relation_detr", "Relation DETR"), DINO),
        whole=True,
        option="count",
        source=SecondProposals,
    ),
    NewPart(
        "queries",
        "distinct_selection",
        "queries = { type = 'distinct_selection' }",
        f"{OFFICIAL}: chosen places, `tests/model/test_selection.py`",
        (row("ddq_detr", "DDQ-DETR-4scale"), DINO),
        whole=True,
    ),
    NewPart(
        "decoder",
        "transformer",
        "decoder.distinct = 0.8",
        f"{OFFICIAL}: a whole training step, `tests/model/test_ddq_detr.py`",
        (row("ddq_detr", "DDQ-DETR-4scale"), DINO),
        whole=True,
        option="distinct",
        source=suppression,
    ),
    NewPart(
        "block",
        "dense",
        "queries.type = 'distinct_selection'\ndecoder.second_head = true\n"
        "blocks.dense = { type = 'dense', count = 40 }\nlosses.class_of_dense = { type = 'quality_focal', weight = 0, "
        "extra_weights = { dense = 1, dense_encoder = 1 } }",
        f"{OFFICIAL}: a whole training step, `tests/model/test_ddq_detr.py`",
        (row("ddq_detr", "DDQ-DETR-4scale"), DINO),
        whole=True,
    ),
    NewPart(
        "loss",
        "quality_focal",
        "losses.class = { type = 'quality_focal', weight = 1 }",
        f"{OFFICIAL}: a whole training step, `tests/model/test_ddq_detr.py`",
    ),
    NewPart(
        "queries",
        "token_selection",
        "queries = { type = 'token_selection' }",
        "`transformers`' RT-DETR: output, losses, `tests/zoo/test_rt_detr.py`",
    ),
    NewPart(
        "encoder",
        "hybrid",
        "backbone.levels = [-3, -2, -1]\nencoder = { type = 'hybrid', layers = 1 }",
        "`transformers`' RT-DETR: output, losses, `tests/zoo/test_rt_detr.py`",
    ),
    NewPart(
        "query_position",
        "raw_box",
        "decoder.positions = ['raw_box']",
        "`transformers`' RT-DETR: output, losses, `tests/zoo/test_rt_detr.py`",
    ),
    NewPart(
        "augment",
        "dense",
        "data.augment = { type = 'dense', from_epoch = 1, until_epoch = 7 }",
        "pixels: boxes on their objects, `tests/data/test_dense.py`",
        DEIM,
        whole=True,
    ),
    NewPart(
        "augment",
        "square",
        "data.augment = { type = 'square' }",
        "pixels: boxes on their objects, `tests/data/test_square.py`",
    ),
]

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
        return str(error).partition("go together: ")[2] or str(error)
    train_a_step(detector, criterion)
    return None


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


def print_mixing() -> None:
    reasons: dict[str, int] = {}
    print("| part | " + " | ".join(BASES) + " |\n| --- |" + " --- |" * len(BASES))
    cells: dict[str, list[str]] = {}
    for part, _, reason in mixing():
        short = None if reason is None else " ".join(reason.split())
        number = "" if short is None else f"({reasons.setdefault(short, len(reasons) + 1)})"
        cells.setdefault(part.label, []).append(number or "yes")
    for label, row_cells in cells.items():
        print(f"| {label} | " + " | ".join(row_cells) + " |")
    print()
    for reason, number in reasons.items():
        print(f"({number}) {reason}  ")


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
    """A cell for each part of `results/new_parts_WHAT_HOST.json`, of whose rows `name` is the key of their recipe."""
    found: dict[str, str] = {}
    for host, label in HOSTS.items():
        file = RESULTS / f"new_parts_{what}_{host}.json"
        for record in json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []:
            part, told = re.sub(r"^\d+_", "", record[name].rpartition("/")[2]), cell(record)
            found[part] = f"{found[part]}; on {label} {told}" if part in found else told
    return found


def published_gain(part: NewPart) -> str:
    """Two published rows and their difference."""
    if part.published is None:
        return ""
    with_it, without = (find_published(keys) for keys in part.published)
    difference = f"{with_it['AP'] - without['AP']:+.1f}"
    return f"{without['AP']} to {with_it['AP']} ({difference}{', with more' if part.whole else ''})"


def print_table() -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixing", action="store_true", help="each part on each base")
    if parser.parse_args().mixing:
        print_mixing()
    else:
        print_table()


if __name__ == "__main__":
    main()
