"""Which parameters have which learning rate and weight decay."""

import pytest
import torch
from torch import nn

from detrkit import build_detector, load_recipe, part
from detrkit.engine.optimiser import build_optimiser, set_rate, without_effect
from detrkit.engine.options import TrainOptions
from detrkit.engine.parameter_rules import Norms, ParameterRule
from detrkit.errors import UserError

from .toys import ToyDetector


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.fixed = nn.Parameter(torch.zeros(1), requires_grad=False)


def groups(**options):
    optimiser = build_optimiser(Detector(), TrainOptions(**options))
    return {(group["lr"], group["weight_decay"]): group["names"] for group in optimiser.param_groups}, optimiser


def test_published_groups_decay_everything():
    found, _ = groups(learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=1e-2)
    assert found == {
        (1e-5, 1e-2): ["backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias"],
        (1e-4, 1e-2): ["norm.weight", "norm.bias", "head.weight", "head.bias"],
    }


def test_groups_without_decay_of_norms():
    found, optimiser = groups(learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=1e-2, decay_norms=False)
    assert found == {
        (1e-5, 1e-2): ["backbone.0.weight"],
        (1e-5, 0.0): ["backbone.0.bias", "backbone.1.weight", "backbone.1.bias"],
        (1e-4, 0.0): ["norm.weight", "norm.bias", "head.bias"],
        (1e-4, 1e-2): ["head.weight"],
    }
    set_rate(optimiser, 0.5)
    assert {group["lr"] for group in optimiser.param_groups} == {5e-5, 5e-6}
    set_rate(optimiser, 1.0)
    assert {group["lr"] for group in optimiser.param_groups} == {1e-4, 1e-5}


def test_rules_multiply_rates_and_decays_of_the_parameters_that_they_name():
    rules = {
        "norms": Norms(decay_factor=0),
        "backbone_norms": Norms(part="backbone", rate_factor=10),
        "head": part("parameter_rule", "all", part="head", rate_factor=2, decay_factor=0.5),
        "head_bias": part("parameter_rule", "biases", part="head", decay_factor=3),
    }
    found, _ = groups(learning_rate=1e-4, backbone_learning_rate=2e-5, weight_decay=1.0, parameters=rules)
    assert found == {
        (2e-5, 1.0): ["backbone.0.weight", "backbone.0.bias"],
        (2e-5 * 10, 0.0): ["backbone.1.weight", "backbone.1.bias"],
        (1e-4, 0.0): ["norm.weight", "norm.bias"],
        (2e-4, 0.5): ["head.weight"],
        (2e-4, 1.5): ["head.bias"],
    }


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Norms(part="head"), r'train\.parameters\.mine has nothing to act on: "head" has'),
        (Norms(part="haed"), r'train\.parameters\.mine\.part: this detector has no "haed"; .*did you mean "head"'),
    ],
)
def test_a_rule_that_finds_nothing_is_told(rule, message):
    with pytest.raises(UserError, match=message):
        groups(parameters={"mine": rule})


class Misspelt(ParameterRule):
    def names(self, detector):
        yield "haed.weight"


def test_a_rule_of_names_that_are_not_there_is_told():
    with pytest.raises(UserError, match=r"train\.parameters\.mine has nothing to act on: this detector has no such"):
        groups(parameters={"mine": Misspelt(decay_factor=0)})


@pytest.mark.parametrize("frozen", [{"freeze": ("backbone",)}, {"backbone_learning_rate": 0.0}])
def test_a_rule_of_frozen_parameters_is_told(frozen):
    rules = {"slow": Norms(part="backbone", rate_factor=0.1), "all_norms": Norms(decay_factor=0)}
    options, detector = TrainOptions(parameters=rules, **frozen), Detector()
    assert without_effect(detector, options) == []
    build_optimiser(detector, options)
    assert without_effect(detector, options) == [
        "train.parameters.slow changes nothing: it is about 2 parameters, all of them frozen"
    ]
    assert without_effect(detector, TrainOptions(**frozen)) == []


def test_a_backbone_of_another_name_is_told():
    """As in `TorchvisionDetector(model)`, whose pretrained backbone would have the full rate in silence."""
    options, detector = TrainOptions(), nn.ModuleDict({"model": Detector()})
    detector["model"].backbone[0].requires_grad_(False)
    told = ["train.backbone_learning_rate is of no parameter"]
    assert [line.partition(":")[0] for line in without_effect(detector, options)] == told
    assert '["model.backbone"]' in without_effect(detector, options)[0]
    for fine in (TrainOptions(backbone=("model.backbone",)), TrainOptions(backbone=())):
        assert without_effect(detector, fine) == []
    assert without_effect(nn.ModuleDict({"body": nn.Linear(1, 1)}), options) == []


def test_deim_trains_the_norms_of_its_backbone_at_the_full_rate_and_decays_biases():
    """The regular expressions of its `deim_r50vd_60e_coco.yml`, on our names."""
    recipe = load_recipe("rt_detr_deim_r50_60ep", ["detector.classes=80", "backbone.name=resnet18d"])
    detector = build_detector(recipe, pretrained=False)
    norms = {name for name, module in detector.named_modules() if "norm" in type(module).__name__.lower()}
    expected = {}
    for name, _ in detector.named_parameters():
        if name.rpartition(".")[0] in norms:
            rate, decay = 2e-4, 0.0
        else:
            rate, decay = (2e-5 if name.startswith("backbone.") else 2e-4), 1e-4
        expected[name] = (pytest.approx(rate), decay)
    optimiser = build_optimiser(detector, recipe.section("train"))
    got = {name: (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for name in g["names"]}
    assert got == expected
    assert {decay for _, decay in got.values()} == {0.0, 1e-4}


def test_equal_rates_share_a_group():
    found, _ = groups(learning_rate=1e-4, backbone_learning_rate=1e-4)
    assert len(found) == 1


def test_a_backbone_with_rate_zero_is_frozen():
    detector = Detector()
    optimiser = build_optimiser(detector, TrainOptions(backbone_learning_rate=0))
    assert not any(parameter.requires_grad for parameter in detector.backbone.parameters())
    assert [name for group in optimiser.param_groups for name in group["names"]] == [
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]


def test_parts_are_frozen_by_their_names():
    detector = ToyDetector(dropout=0.0)
    names = [name for name, _ in detector.named_parameters()]
    first = names[0].rpartition(".")[0]
    build_optimiser(detector, TrainOptions(freeze=(first,)))
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in names if name.startswith(f"{first}.")}
    with pytest.raises(UserError, match=r'train\.freeze: this detector has no "bakbone"; its parts are'):
        build_optimiser(ToyDetector(dropout=0.0), TrainOptions(freeze=("bakbone",)))
    with pytest.raises(UserError, match="leaves nothing to train"):
        build_optimiser(ToyDetector(dropout=0.0), TrainOptions(freeze=tuple({n.split(".")[0] for n in names})))
