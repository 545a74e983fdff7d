"""What `config.json` and `preprocessor_config.json` of `transformers` say, in a recipe's values; no weights.

The package need not be installed; beside its models stands tests/zoo/test_transformers.py.
"""

import re

import pytest

import detrkit
from detrkit.data import Category
from detrkit.errors import CheckpointError
from detrkit.zoo.classes import named_categories
from detrkit.zoo.recognising import family_of_config

TWO_STAGE = {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 20}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "detr"}, "detr_r50_500ep"),
        ({"model_type": "detr", "dilation": True}, "detr_dc5_r50_500ep"),
        pytest.param({"model_type": "detr", "backbone": "resnet101"}, "detr_r101_500ep", marks=pytest.mark.slow),
        ({"model_type": "conditional_detr"}, "conditional_detr_r50_50ep"),
        ({"model_type": "dab-detr", "dilation": True}, "dab_detr_dc5_r50_50ep"),
        ({"model_type": "deformable_detr", "num_feature_levels": 1}, "deformable_detr_r50_50ep"),
        ({"model_type": "deformable_detr"}, "deformable_detr_4scale_r50_50ep"),
        ({"model_type": "deformable_detr", "with_box_refine": True}, "deformable_detr_4scale_refined_r50_50ep"),
        ({"model_type": "deformable_detr", **TWO_STAGE}, "deformable_detr_4scale_two_stage_r50_50ep"),
        ({"model_type": "deformable_detr", "backbone": "resnet34"}, "base/deformable_detr_4scale"),
    ],
)
def test_the_nearest_recipe_is_found(config, name):
    assert family_of_config(config).nearest(config) == name


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"model_type": "detr"}, {"queries.count"}),
        ({"model_type": "conditional_detr"}, set()),
        ({"model_type": "dab-detr"}, {"geometry.eps"}),
        ({"model_type": "deformable_detr", **TWO_STAGE}, {"queries.count"}),
        ({"model_type": "deformable_detr", "backbone": "resnet34"}, {"backbone.name"}),
    ],
)
def test_at_full_size_next_to_nothing_of_it_is_changed(config, changed):
    assert {one.key for one in detrkit.zoo.fit({}, config=config).settings} == changed


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "bert"}, "model_type = 'bert' is no detector"),
        ({"model_type": "detr", "position_embedding_type": "learned"}, "position_embedding_type = 'learned'"),
        ({"model_type": "detr", "activation_function": "tanh"}, "activation_function = 'tanh'.*'relu'"),
        ({"model_type": "detr", "decoder_attention_heads": 4}, "decoder_attention_heads = 4.*accepted: 8"),
        ({"model_type": "detr", "backbone": "test_efficientnet"}, "backbone = 'test_efficientnet'.*norms"),
        ({"model_type": "detr", "backbone_config": {"model_type": "swin"}}, "backbone_config.model_type = 'swin'"),
        ({"model_type": "detr", "backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}}, "depths"),
        ({"model_type": "dab-detr", "keep_query_pos": True}, "keep_query_pos = True"),
        ({"model_type": "dab-detr", "temperature_width": 10}, "temperature_width = 10.*accepted: 20"),
        ({"model_type": "deformable_detr", "two_stage": True}, "two_stage = True.*with_box_refine"),
        ({"model_type": ["detr"]}, r"model_type = \['detr'\] is no detector"),
        ({"model_type": "detr", "num_queries": "100"}, "num_queries = '100'.*accepted: a whole number"),
        ({"model_type": "detr", "backbone_config": "resnet"}, "backbone_config = 'resnet'.*an object with keys"),
        ({"model_type": "detr", "backbone": 50}, "backbone = 50.*name of a timm model"),
        ({"model_type": "dab-detr", "temperature_height": "20"}, "temperature_height = '20'.*a number"),
        ({"model_type": "deformable_detr", "num_feature_levels": [4]}, r"num_feature_levels = \[4\]"),
        ({"model_type": "detr", "backbone_config": {"model_type": "resnet", "depths": 50}}, "depths = 50.*a list of"),
        ({"model_type": "detr", "backbone_config": {"model_type": "resnet", "out_features": "c5"}}, "out_features"),
        ({"model_type": "detr", "backbone_config": {"model_type": "resnet", "layer_type": []}}, "layer_type"),
    ],
)
def test_what_no_part_computes_is_refused_by_its_key(config, told):
    with pytest.raises(CheckpointError, match=f"config.json: .*{told}"):
        detrkit.zoo.fit({}, config=config)


def test_labels_are_named_as_the_config_names_them():
    said = {"id2label": {"0": "N/A", "1": "cat", "3": "bird"}}
    cat, bird = Category(1, "cat"), Category(3, "bird")
    assert named_categories(said, 4) == (Category.placeholder(0), cat, Category.placeholder(2), bird)
    assert named_categories({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, 2) == ()
    assert named_categories({}, 2) == named_categories(None, 2) == ()


def test_names_of_labels_that_are_none_are_refused():
    with pytest.raises(CheckpointError, match=r"config\.json: id2label = \['a', 'b'\]; accepted: .* names by label"):
        named_categories({"id2label": ["a", "b"]}, 2)


@pytest.mark.parametrize("system", ["detr", "rt_detr"])
@pytest.mark.parametrize("queries", [100, 500])
def test_as_many_detections_are_kept_as_the_package_hands_on(system, queries):
    fitted = detrkit.zoo.fit({}, config={"model_type": system, "num_queries": queries})
    assert fitted.recipe.section("detect").keep == max(300, queries)


SQUARE, SHORTER = {"height": 96, "width": 96}, {"shortest_edge": 96, "longest_edge": 128}


@pytest.mark.parametrize(
    ("system", "said", "augment"),
    [
        ("detr", SHORTER, ("detr", 96, 128)),
        ("detr", 96, ("detr", 96, 1333)),
        ("detr", SQUARE, ("square", 96)),
        ("detr", [96, 96], ("square", 96)),
        ("detr", SHORTER | {"height": None, "width": None}, ("detr", 96, 128)),
        ("detr", {"max_height": 96, "max_width": 96}, ("detr", 96, 96)),
        ("rt_detr", SQUARE, ("square", 96)),
        ("rt_detr", SHORTER, ("detr", 96, 128)),
    ],
    ids=str,
)
def test_every_form_of_a_size_is_taken(system, said, augment):
    fitted = detrkit.zoo.fit({}, config={"model_type": system}, preprocessor={"size": said})
    table = fitted.recipe.full_values()["data"]["augment"]
    assert (table["type"], table["eval_size"], *([table["eval_max_size"]] if len(augment) > 2 else [])) == augment
    assert not fitted.lost


@pytest.mark.parametrize(
    ("system", "said", "told"),
    [
        ("detr", {"size": {"height": 96, "width": 128}}, "size = .*128}: images keep their shape, .*eval_size = 800"),
        ("rt_detr", {"size": {"height": 96, "width": 128}}, "images become squares, by .*eval_size = 640"),
        ("detr", {"size": {"max_height": 96, "max_width": 128}}, "size = .*'max_width': 128}: images keep"),
        ("detr", {"size": {"shortest_edge": 96}}, "size = {'shortest_edge': 96}: images keep"),
        ("detr", {"resample": 3}, r"resample = 3 \(bicubic\): images are resized bilinearly"),
        ("detr", {"pad_size": SQUARE}, r"pad_size = .*96}: .* predictions may depend on padding"),
    ],
    ids=str,
)
def test_what_no_recipe_says_of_images_is_told_with_its_value(system, said, told):
    fitted = detrkit.zoo.fit({}, config={"model_type": system}, preprocessor=said)
    (line,) = fitted.lost
    assert re.search(told, line)
    assert f"not kept of preprocessor_config.json: {line}" in fitted.summary()


def test_what_a_person_sets_of_images_stays():
    said = {"size": SQUARE, "do_normalize": False}
    by_hand = ["data.augment.eval_size=64", "backbone.mean=[0.5,0.5,0.5]"]
    fitted = detrkit.zoo.fit({}, config={"model_type": "detr"}, preprocessor=said, overrides=by_hand)
    assert fitted.recipe.get("data.augment.eval_size") == 64
    assert fitted.recipe.get("backbone.mean") == (0.5, 0.5, 0.5)
    assert fitted.lost == (f"size = {SQUARE}: images keep their shape, by data.augment.eval_size = 64",)
    own = detrkit.load_recipe("base/detr", ["data.augment.type=flip"])
    assert detrkit.zoo.fit({}, own, config={"model_type": "detr"}, preprocessor=said).lost == (
        f'size = {SQUARE}: sizes are what data.augment "flip" makes of them',
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"image_mean": [0.5, 0.5]}, r"image_mean = \[0.5, 0.5\]; accepted: a number, or one for each"),
        ({"rescale_factor": 0}, "rescale_factor = 0; accepted: numbers above 0"),
        ({"size": "large"}, "size = 'large'; accepted: sides by name"),
    ],
)
def test_a_preprocessor_that_makes_no_sense_is_refused_by_its_key(said, told):
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {told}"):
        detrkit.zoo.fit({}, config={"model_type": "detr"}, preprocessor=said)
