"""How a part and its twin are compared: the same values, gradients, and float32 close by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.recipe import part
from detrkit.recipe.registry import parts

EXACT = {"rtol": 1e-10, "atol": 1e-10}
ROUGH = {"rtol": 1e-4, "atol": 2e-5}
"""of float32: some tens of its roundings, of numbers of about 1"""


@dataclass(frozen=True)
class Case:
    """A part with some of its options, on one scene.

    make: the part, in float64; scene: its arguments, tensors or dataclasses of them; part, twin: from part and scene
    to tensors; options: what `make` was given, for the check that every option has been varied.
    """

    slot: str
    name: str
    options: Mapping[str, Any]
    make: Callable[[], Any]
    scene: Callable[[], dict[str, Any]]
    part: Callable[..., Any]
    twin: Callable[..., Any]
    has_gradient: bool = True
    label: str = ""

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return "-".join(x for x in (self.slot, self.name, options, self.label) if x).replace(" ", "")


def made(slot: str, name: str, options: Mapping[str, Any], **offered: Any) -> Any:
    """The part in float64 and evaluation mode, every weight random, so that nothing hides behind a start of zero."""
    built = part(slot, name, **options)(**offered)
    return randomised(built) if isinstance(built, nn.Module) else built


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


class AsAsked:
    """A part as its twin sees it: its weights, but the numbers and names that were asked for.

    Where a part loses an option on the way into an attribute, its twin would lose it with it.
    """

    def __init__(self, built: Any, case: Case):
        declared = inspect.signature(parts(case.slot)[case.name]).parameters
        asked = {key: case.options.get(key, parameter.default) for key, parameter in declared.items()}
        self._built, self._asked = built, {k: v for k, v in asked.items() if isinstance(v, int | float | str)}

    def __getattr__(self, name: str) -> Any:
        return self._asked[name] if name in self._asked else getattr(self._built, name)


def compare(case: Case) -> None:
    """Values and gradients to 1e-10 in float64; values to about 1e-5 in float32."""
    built, scene = case.make(), case.scene()
    leaves = [x.requires_grad_() for x in tensors(scene) if x.is_floating_point()] if case.has_gradient else []
    found, expected = flat(case.part(built, **scene)), flat(case.twin(AsAsked(built, case), **scene))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, **EXACT)
    if case.has_gradient:
        names = [name for name, _ in parameters(built)]
        leaves += [p for _, p in parameters(built)]
        names = [f"argument {i}" for i in range(len(leaves) - len(names))] + names
        torch.manual_seed(2)
        factors = [torch.randn_like(x) for x in found]
        slopes = [gradients(values, factors, leaves) for values in (found, expected)]
        for name, one, other in zip(names, *slopes, strict=True):
            torch.testing.assert_close(one, other, **EXACT, msg=lambda m, n=name: f"gradient by {n}: {m}")
    with torch.no_grad():
        rough = flat(case.part(built.float() if isinstance(built, nn.Module) else built, **narrow(scene)))
    for one, other in zip(rough, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other.detach(), **ROUGH)


def parameters(built: Any) -> list[tuple[str, Tensor]]:
    return list(built.named_parameters()) if isinstance(built, nn.Module) else []


def gradients(values: list[Tensor], factors: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Of the values' sum, each times its factor; zeros where nothing arrives."""
    total = sum((x * factor).sum() for x, factor in zip(values, factors, strict=True) if x.requires_grad)
    found = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if x is None else x for leaf, x in zip(leaves, found, strict=True)]


def flat(values: Any) -> list[Tensor]:
    """The tensors of a tensor, or of any nest of tuples, dicts and dataclasses."""
    return list(tensors(values))


def tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)
    elif is_dataclass(values):
        for field in fields(values):
            if field.init:
                yield from tensors(getattr(values, field.name))


def narrow(values: Any) -> Any:
    """The same with float32 in place of float64."""
    if isinstance(values, Tensor):
        return values.detach().float() if values.is_floating_point() else values
    if isinstance(values, Mapping):
        return {key: narrow(value) for key, value in values.items()}
    if isinstance(values, list | tuple) and not hasattr(values, "_fields"):
        return type(values)(narrow(value) for value in values)
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **{f.name: narrow(getattr(values, f.name)) for f in fields(values) if f.init})
    return values
