"""Every registered attention, geometry, cost and loss against its twin, a slow plain formula written for reading.

A twin stands in the module of its slot in this folder and is listed there in `CASES`.
"""

import inspect

import pytest
import torch

from detrkit.recipe import part
from detrkit.recipe.registry import load_registered_parts, parts, slots
from tests.twins import among, costs, cross, geometry, losses, positions
from tests.twins.bench import compare, narrow

MODULES = {
    "cross_attention": cross,
    "term": cross,
    "self_attention": among,
    "self_term": among,
    "query_position": positions,
    "position": positions,
    "geometry": geometry,
    "cost": costs,
    "loss": losses,
}
"""Which module holds the twins of a slot."""
CASES = [case for module in dict.fromkeys(MODULES.values()) for case in module.CASES]
UNVARIED = {"weight", "extra_weights"}
"""Options that the part itself does nothing with: what sums the parts does."""


def registered() -> list[tuple[str, str]]:
    """Slot and name of detrkit's own parts in those slots; a plug-in that is installed has tests of its own."""
    load_registered_parts()
    return [
        (slot, name)
        for slot in MODULES
        for name, build in parts(slot).items()
        if build.__module__.startswith("detrkit.")
    ]


@pytest.mark.parametrize(("slot", "name"), registered(), ids=lambda x: x)
def test_every_part_has_a_twin_that_varies_its_options(slot, name):
    file = f"tests/twins/{MODULES[slot].__name__.rpartition('.')[2]}.py"
    own = [case for case in CASES if (case.slot, case.name) == (slot, name)]
    assert own, f'the {slot} "{name}" has no twin: write its formula into {file}, and list it there in CASES'
    options = {
        key: parameter.default
        for key, parameter in inspect.signature(parts(slot)[name]).parameters.items()
        if key not in slots()[slot].offers and key not in UNVARIED
    }
    for key, default in options.items():
        values = [case.options.get(key, default) for case in own]
        varied = any(value != values[0] for value in values)
        assert varied, f'no twin of the {slot} "{name}" varies its option {key}: add a case to CASES of {file}'


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_part_is_what_its_twin_gives(case):
    compare(case)


SURE = [case for case in losses.CASES if "gamma" in inspect.signature(parts("loss")[case.name]).parameters]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", dict.fromkeys(case.name for case in SURE))
def test_gradients_are_finite_however_sure_a_detector_is(name, gamma):
    """In float32 a logit of 17 is a probability of 1, whose distance from 1 has no root with a slope."""
    case = next(case for case in SURE if case.name == name)
    scene = narrow(case.scene())
    output = scene["output"]
    for values in (output.logits, output.objectness):
        values.copy_(torch.linspace(-120, 120, values.numel())[torch.randperm(values.numel())].view_as(values))
        values.requires_grad_()
    value = case.part(part("loss", name, gamma=gamma)(), **scene)
    value.sum().backward()
    for values in (output.logits, output.objectness):
        assert values.grad is None or values.grad.isfinite().all()
