"""Recipes whose parts do not go together are refused before anything trains, by the keys to change."""

import pytest
import torch

import detrkit
from detrkit.attention.query_position import QueryPositionPart
from detrkit.engine.rehearsal import rehearse
from detrkit.errors import UserError
from detrkit.recipe import register, registry
from detrkit.structures import QueryPosition
from tests.model.test_detector import batch, small, small_recipe

SMALL = ["backbone.name=resnet18", "backbone.pretrained=false", "detector.classes=4", "encoder.layers=1"]


@register("query_position", "test_box")
class OneMoreBox(QueryPositionPart):
    """A part of one's own that gives what "box" gives, without a code."""

    embeddings = ("box",)

    def __init__(self):
        super().__init__()


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("detr_r50_500ep", ["head.background=false"], r"needs head\.background = true"),
        ("detr_r50_500ep", ["blocks.denoising.type=denoising"], "keep nothing of a box"),
        ("conditional_detr_r50_50ep", ["blocks.denoising.type=denoising"], 'decoder.positions has "learned"'),
        ("smca_detr_r50_50ep", ["blocks.denoising.type=contrastive"], 'decoder.positions has "learned"'),
        ("dab_detr_r50_50ep", ["detect.objectness=true"], r"detect\.objectness = true needs head\.objectness = true"),
        ("dab_detr_r50_50ep", ["losses.there.type=objectness"], r"losses\.there needs head\.objectness = true"),
        (
            "dab_detr_r50_50ep",
            ["matcher.costs.class.objectness=true"],
            r"matcher\.costs\.class needs head\.objectness = true",
        ),
        (
            "dab_detr_r50_50ep",
            ['decoder.cross_attention.terms=["content","point","content"]'],
            'the term "content" stands twice',
        ),
        ("sap_detr_r50_50ep", ['decoder.positions=["point","point"]'], '"point" stands twice in decoder.positions'),
        (
            "dab_detr_r50_50ep",
            ['decoder.positions=["box","point"]'],
            'decoder.positions: "box" and "point" both give the code "point"',
        ),
        (
            "dab_detr_r50_50ep",
            ['decoder.positions=["box","test_box"]', "decoder.content_scale=false"],
            'decoder.positions: "box" and "test_box" both give the embedding "box"',
        ),
        (
            "deformable_detr_r50_50ep",
            ["decoder.norm_carried=true"],
            r"norm_carried = true carries the final norm on; it needs decoder\.final_norm = true",
        ),
        ("detr_r50_500ep", ["decoder.content_scale=true"], r"content_scale = true .* \['learned'\] declares none"),
        (
            "smca_detr_r50_50ep",
            ["decoder.content_scale=true"],
            r"content_scale = true .* \['learned', 'entering'\] declares none",
        ),
        ("detr_r50_500ep", ["queries.point_norm=true"], r"queries\.point_depth = 0 no point is read"),
        ("detr_r50_500ep", ['decoder.positions=["point"]'], 'Name "learned" there$'),
        (
            "conditional_detr_r50_50ep",
            ['decoder.positions=["point"]', "queries.point_depth=0"],
            r'Name "learned" there, or set queries\.point_depth',
        ),
        (
            "detr_r50_500ep",
            ['decoder.positions=["point"]', "queries.point_depth=2"],  # DETR's references keep no point
            'Name "learned" there$',
        ),
        (
            "dab_detr_r50_50ep",
            ["backbone.levels=[-2,-1]"],
            r'encoder "transformer" reads one feature map, but backbone\.levels names 2',
        ),
        ("anchor_detr_r50_50ep", ["backbone.levels=[1,2,3]"], r'"row_column" .* backbone\.levels names 3'),
        (
            "dab_detr_r50_50ep",
            [f"matcher.costs.{name}=none" for name in ("class", "box", "giou")],
            r"matcher\.costs is empty",
        ),
        ("dab_detr_r50_50ep", ["decoder.cross_attention.terms=[]"], r"cross_attention\.terms is empty"),
        ("dab_detr_r50_50ep", [f"losses.{name}=none" for name in ("class", "box", "giou")], "losses is empty"),
    ],
)
def test_what_does_not_go_together(name, overrides, message):
    recipe = detrkit.load_recipe(name, [*SMALL, *overrides])
    with pytest.raises(UserError, match=message):
        build(recipe)


def test_learned_queries_may_differ_by_their_points_alone():
    build(detrkit.load_recipe("conditional_detr_r50_50ep", [*SMALL, 'decoder.positions=["point"]']))


def build(recipe):
    return detrkit.build_detector(recipe), detrkit.build_criterion(recipe)


@pytest.mark.parametrize("kind", [torch.nn.Module, QueryPositionPart])
def test_a_position_of_ones_own_is_taken_where_it_is_one(kind, monkeypatch):
    class Mine(kind):
        embeddings = ("mine",)

        def __init__(self):
            super().__init__()

        def forward(self, queries, scale, memory):
            return QueryPosition({"mine": queries.content}, {"point": queries.content})

    registry.load_registered_parts()
    monkeypatch.setitem(registry._current.parts, "query_position", {**registry.parts("query_position"), "mine": Mine})
    asked = ["dab_detr_r50_50ep", "decoder.positions=['mine']"]
    if kind is QueryPositionPart:
        with pytest.raises(UserError, match=r"\['mine'\] declares none \(`codes` of a part\)"):
            small(*asked)
        rehearse(*small(*asked, "decoder.content_scale=false"), name="mine")
    else:
        with pytest.raises(UserError, match=r"query_position .mine. is of the class Mine, which is no Q"):
            small(*asked)


def test_no_object_is_no_label():
    detector, criterion = small("detr_r50_500ep", "detector.classes=5")
    images, mask, targets = batch()
    output = detector(images, mask)
    targets[0]["labels"].fill_(5)
    with pytest.raises(UserError, match=r"targets\[0\] has the label 5; labels are 0 to 4"):
        criterion(output, targets)


def test_what_a_model_gives_its_parts_is_no_option_of_another_type():
    with pytest.raises(UserError, match='no such option of queries "anchor_boxes"') as caught:
        small_recipe("dab_detr_r50_50ep", "queries.head=1")
    assert "has it" not in str(caught.value)
