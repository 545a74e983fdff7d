"""Files that are no checkpoint of another code: what is said of them."""

import pytest
import torch

import detrkit
from detrkit.errors import CheckpointError


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
