"""Layers that are computed again in the backward pass, beside the same training that keeps everything."""

import copy

import pytest
import torch
from torch import nn

import detrkit
from detrkit.compare.timing import peak_memory
from detrkit.engine.recomputing import keep_again, layered, recompute
from detrkit.errors import UserError
from detrkit.recipe import load_recipe
from detrkit.runs.checkpoint import read_weights
from tests.engine.small_runs import SMALL, run
from tests.engine.toys import same

CPU = torch.device("cpu")
ALL = ["backbone", "encoder", "decoder"]
SYSTEMS = {
    "SAP-DETR": ("sap_detr_r50_50ep", ["decoder.dropout=0.1", "encoder.dropout=0.1"]),
    "SAP + DINO": ("sap_dino_r50_12ep", []),
    "DINO, 4 levels": ("dino_4scale_r50_12ep", []),
    "RT-DETR, norms that learn": ("rt_detr_r18_72ep", ["backbone.norm=batch"]),
    "MS-DETR": ("ms_deformable_detr_4scale_r50_12ep", []),
}
TRUTH = [
    {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4], [0.3, 0.6, 0.2, 0.2]])},
    {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.4, 0.5, 0.5]])},
]


def small(recipe, *values):
    size = ["backbone.name=resnet18", "decoder.layers=2", *([] if recipe.startswith("rt_") else ["encoder.layers=2"])]
    return load_recipe(recipe, ["detector.classes=3", "backbone.pretrained=false", *size, *values])


def outcome(detector, criterion, precision):
    """Losses, gradients and buffers of a step."""
    torch.manual_seed(1)
    images, mask = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 70:] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = detector.train()(images, mask, TRUTH)
    losses = criterion(output, TRUTH)
    losses["total"].backward()
    grads = {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}
    detector.zero_grad(set_to_none=True)
    return losses, grads, dict(detector.named_buffers())


@pytest.mark.parametrize(
    ("system", "precision"),
    [*((system, "fp32") for system in SYSTEMS), ("SAP-DETR", "bf16"), ("DINO, 4 levels", "bf16")],
)
def test_losses_gradients_and_statistics_are_the_same(system, precision):
    name, values = SYSTEMS[system]
    recipe = small(name, *values)
    torch.manual_seed(0)
    keeping = detrkit.build_detector(recipe)
    again = copy.deepcopy(keeping)
    recompute(again, ALL)
    criterion = detrkit.build_criterion(recipe)
    for ours, theirs in zip(*(outcome(each, criterion, precision) for each in (again, keeping)), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), key


class Stack(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Module()
        self.body.blocks = nn.ModuleDict({"all": nn.Sequential(*layers)})
        self.head = nn.Linear(64, 1)

    def forward(self, x):
        return self.head(self.body.blocks["all"](x))


def block(*last):
    return nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Dropout(0.1), nn.Linear(512, 64), *last)


def test_less_is_kept_in_training_and_nothing_else_is_different():
    model = Stack(*(block() for _ in range(8)))
    assert layered(model) == ["body"]
    given = torch.randn(512, 64)

    def step():
        model.train()(given).sum().backward()
        model.zero_grad(set_to_none=True)

    before, detected = peak_memory(step, CPU), model.eval()(given)
    names = model.state_dict().keys()
    recompute(model, ["body"])
    assert peak_memory(step, CPU) < before / 3
    assert torch.equal(model.eval()(given), detected)
    assert model.state_dict().keys() == names
    keep_again(model)
    assert peak_memory(step, CPU) == before


def test_a_copy_computes_by_its_own_weights():
    model = Stack(block(), block())
    recompute(model, ["body"])
    other, given = copy.deepcopy(model).eval(), torch.randn(4, 64)
    expected = other(given)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(other(given), expected)
    keep_again(other)
    assert torch.equal(other(given), expected)


def test_a_part_without_lists_is_one_layer():
    model = Stack(block())
    recompute(model, ["head"])
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == ["head"]


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(
        UserError, match=r'train\.recompute: .* no "boddy"; its parts are "body" or "head"; did you mean'
    ):
        recompute(Stack(block()), ["boddy"])


def test_a_training_ends_with_the_same_weights(tmp_path):
    for name, values in (("keeping", ()), ("again", ('train.recompute=["backbone","encoder","decoder"]',))):
        done = run("quickstart", *SMALL, "decoder.dropout=0.1", *values, "--run-dir", str(tmp_path / name))
        assert done.exit_code == 0, done.output
    (one, _), (other, _) = (
        read_weights(tmp_path / name / "last" / "weights.safetensors") for name in ("keeping", "again")
    )
    assert same(one, other)


def test_a_compiler_and_layers_that_are_computed_again_do_not_go_together(tmp_path):
    done = run(
        "quickstart", *SMALL, "train.compile=true", 'train.recompute=["encoder"]', "--run-dir", str(tmp_path / "a")
    )
    assert isinstance(done.exception, UserError)
    assert "train.recompute and train.compile" in str(done.exception)
    assert not (tmp_path / "a").exists()


def test_a_layer_may_put_others_into_the_list_that_it_is_given():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

        def forward(self, xs):
            for index, part in enumerate(self.parts):  # as HRNet's
                xs[index] = part(xs[index]).sin()
            return [xs[0] + xs[1], xs[0] * xs[1]]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(Branches(), Branches())

        def forward(self, x):
            return self.body([x, x.cos()])[0]

    keeping, given = Model().train(), torch.randn(4, 64)
    again = copy.deepcopy(keeping)
    recompute(again, ["body"])
    for model in (keeping, again):
        model(given).sum().backward()
    for one, other in zip(keeping.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_what_was_changed_in_place_since_is_not_taken_for_what_was_given():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x):
            y = self.linear(x.sin())
            x += 1
            return y

    model = Stack(block(), Adds())
    recompute(model, ["body"])
    with pytest.raises((UserError, RuntimeError), match=r"given has been changed in place|by an inplace operation"):
        model.train()(torch.randn(4, 64)).sum().backward()
