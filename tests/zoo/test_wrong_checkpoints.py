"""Files that are no checkpoint of another code: what is said of them."""

import re

import pytest
import torch

import detrkit
from detrkit.errors import CheckpointError
from detrkit.runs.checkpoint import load_exactly
from detrkit.zoo.families import FAMILIES


@pytest.fixture(scope="module")
def recipe():
    return detrkit.load_recipe("quickstart", ["detector.classes=3"])


def test_weights_of_detrkit_s_own_are_told_from_another_code_s(recipe):
    state = detrkit.build_detector(recipe).state_dict()
    with pytest.raises(CheckpointError, match=r"detrkit's own names, so there is nothing to convert.*train\.init_from"):
        detrkit.zoo.convert(state, recipe)


def test_weights_of_a_backbone_alone_are_told_where_they_go(recipe):
    state = {"conv_stem.weight": torch.zeros(8, 3, 3, 3), "bn1.bias": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=r"0 tensors matched.*go into a recipe by backbone\.weights\)"):
        detrkit.zoo.convert(state, recipe)


def quantised(tensor):
    return (20 * tensor).to(torch.int8)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (quantised, r"is of torch\.int8, where floating point numbers belong"),
        (lambda tensor: tensor > 0, r"is of torch\.bool"),
        (lambda tensor: tensor.to(torch.complex64), r"is of torch\.complex64"),
        (lambda tensor: tensor.to_sparse(), r"is stored as torch\.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "has a shape and no values"),
    ],
    ids=["int8", "bool", "complex", "sparse", "meta"],
)
def test_a_tensor_of_another_kind_is_named_and_not_copied(recipe, made, told):
    """Its bytes would become other numbers, and the detector compute something in silence."""
    own = detrkit.build_detector(recipe, pretrained=False).state_dict()["decoder.head.objectness.weight"]
    found = detrkit.zoo.match({"obj_embed.weight": made(own)}, recipe)
    assert not found.state
    assert re.search(told, found.mismatched[0])
    detector = torch.nn.Linear(2, 2)
    weights = detector.state_dict()
    with pytest.raises(CheckpointError, match=rf"weight {told}"):
        load_exactly(detector, {**weights, "weight": made(weights["weight"])}, "a.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "model.encoder.layers.0.self_attn.q_proj.weight",  # transformers
        "label_enc.weight",  # detrex
        "dn_query_generator.label_embedding.weight",  # mmdetection
        "denoising_generator.label_encoder.weight",  # Relation-DETR
        "transformer.decoder.position_relation_embedding.pos_proj.0.weight",
        "roi_heads.box_predictor.cls_score.weight",  # torchvision
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5)])
def test_preparing_takes_tensors_of_any_shape(name, shape):
    """What has a wrong one is told when its place is looked for."""
    attention = {name.replace("q_proj", f"{part}_proj"): torch.zeros(4, 4) for part in "qkv"}
    state = {**attention, name: torch.zeros(shape)}
    for family in FAMILIES.values():
        assert family.prepare(state)
