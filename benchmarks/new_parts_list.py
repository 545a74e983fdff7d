"""The parts of 2023 to 2026: what adds each to a recipe, what it was checked against, and its published gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from detrkit import ranking, suppression
from detrkit.decoder_layer import ManyFirst
from detrkit.encoders.deformable import MemoryFusion
from detrkit.queries.proposals import SecondProposals
from detrkit.queries.selection import by_rank

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
        "data.augment = { type = 'by_epoch', stages = { dense = 'dense', end = 'detr' }, changes = [7] }",
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
