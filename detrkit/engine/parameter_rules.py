"""Which of a detector's parameters the optimiser treats otherwise than the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from detrkit.errors import lacking
from detrkit.recipe import define_slot, register

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

RateFactor = Annotated[float, Field(gt=0, le=1000)]
DecayFactor = Annotated[float, Field(ge=0, le=1000)]


class ParameterRule:
    """Some parameters, and what their learning rate and weight decay are multiplied by.

    A parameter that several rules name has all their factors. One of your own says in `names` which it means.

    Args:
        part: only within this part of the detector, by the beginning of parameters' names up to a dot, as in
            `train.freeze`; "": anywhere.
        rate_factor: of the rate that they would have, the backbone's or the rest's.
        decay_factor: of the weight decay; 0 for none.
    """

    part = ""
    rate_factor: float = 1.0
    decay_factor: float = 1.0

    def __init__(self, *, part: str = "", rate_factor: RateFactor = 1.0, decay_factor: DecayFactor = 1.0):
        self.part, self.rate_factor, self.decay_factor = part, rate_factor, decay_factor

    def names(self, detector: nn.Module) -> Iterator[str]:
        """Parameters by their names in the whole detector; those outside `part` are passed over."""
        raise lacking(self, ParameterRule.names)


define_slot("parameter_rule", offers=(), base=ParameterRule)


@register("parameter_rule", "all")
class All(ParameterRule):
    """All parameters, of a `part` as a rule."""

    def names(self, detector: nn.Module) -> Iterator[str]:
        return (name for name, _ in detector.named_parameters())


@register("parameter_rule", "norms")
class Norms(ParameterRule):
    """Scales and biases of normalisation layers."""

    def names(self, detector: nn.Module) -> Iterator[str]:
        return _own_parameters(detector, norms=True)


@register("parameter_rule", "biases")
class Biases(ParameterRule):
    """Biases of all layers that are no normalisation layers."""

    def names(self, detector: nn.Module) -> Iterator[str]:
        return (name for name in _own_parameters(detector, norms=False) if name.endswith("bias"))


def _own_parameters(detector: nn.Module, *, norms: bool) -> Iterator[str]:
    """The names of parameters that normalisation layers hold themselves, or those of all other modules."""
    for prefix, module in detector.named_modules():
        if isinstance(module, NORMS) == norms:
            for name, _ in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}" if prefix else name
