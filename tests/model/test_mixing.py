"""What docs/mixing.md says of parts and their needs: each line refused without, and taken with what it needs."""

import re
from pathlib import Path

import pytest

import detrkit
from detrkit.engine.rehearsal import rehearse
from detrkit.errors import UserError
from tests.model.test_detector import small
from tests.test_docs import load_script

DAB, CONDITIONAL, DETR = "dab_detr_r50_50ep", "conditional_detr_r50_50ep", "detr_r50_500ep"
SAP, DEFORMABLE = "sap_detr_r50_50ep", "deformable_detr_r50_50ep"
SIDES = "geometry.type=salient_point"
MANY = "blocks.mixed={type='mixed', source='decoder'}"


def terms(*names):
    return f"decoder.cross_attention.terms={list(names)}"


NEEDS = {  # recipe, a part that something is lacking for, what is said, and what it takes
    "sides for SDG": (
        CONDITIONAL,
        [terms("content", "point", "side_directed_gaussian")],
        'needs references with sides.*"box" or "salient_point"',
        [SIDES],
    ),
    "sides for codes of boxes": (
        CONDITIONAL,
        ["decoder.positions=['learned', 'box']"],
        "references with sides",
        [SIDES],
    ),
    "sides for codes of sides": (
        CONDITIONAL,
        ["decoder.positions=['learned', 'point', 'side']"],
        "references with sides",
        [SIDES],
    ),
    "sides for aligned attention": (
        DETR,
        ["decoder.cross_attention.type=semantics_aligned"],
        "references with sides",
        ["geometry.type=box"],
    ),
    "code of points": (
        SAP,
        ["decoder.positions=['side']", "decoder.content_scale=false"],
        "gives the code 'point'",
        None,
    ),
    "code of sides": (
        DAB,
        [terms("content", "point", "side")],
        "gives the code 'side'",
        ["decoder.positions=['box', 'side']"],
    ),
    "entering": (
        DAB,
        [terms("content", "point", "head_gaussian")],
        '"entering" in decoder.positions',
        ["decoder.positions=['entering', 'box']"],
    ),
    "embeddings": (
        CONDITIONAL,
        ["queries.type=anchor_boxes", SIDES],
        "bring no embedding",
        ["decoder.positions=['point']"],
    ),
    "the embedding of chosen boxes": (
        DAB,
        ["queries={type='two_stage', content='learned'}"],
        "no part of decoder.positions says that it reads it",
        ["decoder.positions=['learned', 'box']"],
    ),
    "axes in the encoder": (DAB, ["encoder.type=row_column"], 'position.type = "axes"', ["position.type=axes"]),
    "axes in the decoder": (
        DAB,
        ["decoder.cross_attention.type=row_column"],
        'position.type = "axes"',
        ["position.type=axes"],
    ),
    "sides for raw boxes": (
        CONDITIONAL,
        ["decoder.positions=['learned', 'point', 'raw_box']"],
        "references with sides",
        [SIDES],
    ),
    "halves": (
        "rt_detr_r50_72ep",
        ["backbone.name=resnet50d", "backbone.dilated=true", "decoder.layers=1"],
        r"each has half the size .* set backbone\.dilated = false",
        ["backbone.dilated=false"],
    ),
    "levels": (DAB, ["backbone.levels=[-2,-1]"], "reads one feature map", ["encoder.type=deformable"]),
    "points for the inner loss": (DAB, ["losses.inner.weight=1"], "a geometry that predicts points", [SIDES]),
    "points for the inner cost": (DAB, ["matcher.costs.inner.weight=1"], "a geometry that predicts points", [SIDES]),
    "objectness": (DAB, ["losses.objectness.weight=1"], "head.objectness = true", ["head.objectness=true"]),
    "no object": (DAB, ["detect.scores=softmax"], "head.background = true", ["head.background=true"]),
    "boxes to noise": (
        DETR,
        ["blocks.denoising.groups=2", "queries.point_depth=1"],
        "keep nothing of a box",
        ["geometry.type=box", "decoder.positions=['point']"],
    ),
    "places of known boxes": (
        "deformable_detr_4scale_refined_r50_50ep",
        ["blocks.denoising.groups=2"],
        "a known box has none of",
        ["decoder.positions=['point']"],
    ),
    "ranks for all queries": (DAB, ["decoder.ranked=299"], "set decoder.ranked = 300", ["decoder.ranked=300"]),
    "what trains many predictions": (DAB, ["decoder.many_first=true"], "which no block trains", [MANY]),
    "many predictions": (DAB, [MANY], "the decoder makes none", ["decoder.many_first=true"]),
    "a second set": (
        DAB,
        ["blocks.dense.count=20"],
        "which queries .* does not make",
        ["queries.type=mixed_selection"],
    ),
    "heads of a second set": (
        DAB,
        ["decoder.second_head=true", "queries.type=mixed_selection"],
        "which no block makes",
        ["blocks.dense.count=20"],
    ),
    "groups": ("anchor_detr_r50_50ep", ["blocks.groups.count=2"], "and queries .* makes one", None),
}


@pytest.mark.parametrize("case", NEEDS)
def test_what_is_lacking_is_named_and_then_goes(case):
    name, asking, said, remedy = NEEDS[case]
    with pytest.raises(UserError, match=said):
        rehearse(*small(name, *asking), name=name)
    if remedy is not None:
        rehearse(*small(name, *asking, *remedy), name=name)


def test_the_pages_recipes_train(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "mixing.md").read_text(encoding="utf-8")
    recipes = re.findall(r"    extends = .*\n(?:    .+\n)+", page)
    assert len(recipes) == 5
    for recipe in recipes:
        file = tmp_path / "mixed.toml"
        file.write_text(re.sub(r"(?m)^    ", "", recipe))
        detrkit.load_recipe(file)
        rehearse(*small(file), name="mixed")


def test_the_table_of_new_parts_on_bases_holds_where_it_is_tried(tmp_path):
    """All of it again: python benchmarks/mixing.py."""
    root = Path(__file__).resolve().parents[2]
    script = load_script(root / "benchmarks" / "mixing.py")
    page = (root / "docs" / "mixing.md").read_text(encoding="utf-8")
    table = [[c.strip() for c in line.strip("|").split(" | ")] for line in page.splitlines() if line.count("|") > 12]
    assert table[0] == ["part", *script.BASES]
    assert [row[0] for row in table[2:]] == [part.label for part in script.NEW]
    reasons = dict(re.findall(r"(?m)^(\(\d+\)) (.*?) *$", page))
    for index, (part, row) in enumerate(zip(script.NEW, table[2:], strict=True)):
        column = 5 * index % len(script.BASES)  # another base for each part
        name = list(script.BASES)[column]
        found = script.refusal(part, script.BASES[name], tmp_path)
        assert found == (None if row[column + 1] == "yes" else reasons[row[column + 1]]), (part.label, name)
