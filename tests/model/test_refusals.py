"""Recipes whose parts do not go together are refused before anything trains, by the keys to change."""

import pytest

import detrkit
from detrkit.errors import UserError

SMALL = ["backbone.name=resnet18", "backbone.pretrained=false", "detector.classes=4", "encoder.layers=1"]


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
    ],
)
def test_what_does_not_go_together(name, overrides, message):
    recipe = detrkit.load_recipe(name, [*SMALL, *overrides])
    with pytest.raises(UserError, match=message):
        build(recipe)


def build(recipe):
    return detrkit.build_detector(recipe), detrkit.build_criterion(recipe)
