"""A small detector's worth of toy parts, in a registry of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import Field

from detrkit.recipe import Factory, RecipeError, Slot, define_section, define_slot, load_recipe, register
from detrkit.recipe.registry import empty_registry

Positive = Annotated[int, Field(ge=1)]


class Part:
    """Keeps what it was built with, so that a test can look."""

    def __init__(self, **said) -> None:
        self.said = said


class PlainEncoder(Part):
    def __init__(
        self,
        *,
        width: int,
        layers: Positive = 6,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        super().__init__(width=width, layers=layers, dropout=dropout, activation=activation)


class DeformableEncoder(Part):
    def __init__(self, *, width: int, points: Positive, sizes: tuple[int, int] = (3, 5)) -> None:
        super().__init__(width=width, points=points, sizes=sizes)


class ContentTerm(Part):
    def __init__(self, *, width: int, layer: int) -> None:
        super().__init__(width=width, layer=layer)


class GaussTerm(Part):
    def __init__(self, *, width: int, scale: float = 1.0) -> None:
        super().__init__(width=width, scale=scale)


class TermAttention(Part):
    def __init__(self, *, width: int, layer: int, terms: Annotated[list[Factory], Slot("term")]) -> None:
        super().__init__(terms=[term(width=width, layer=layer) for term in terms])


class Decoder(Part):
    def __init__(
        self,
        *,
        width: int,
        attention: Annotated[Factory, Slot("attention")],
        norm: Annotated[Factory | None, Slot("norm")] = "layer",
        layers: Positive = 6,
    ) -> None:
        super().__init__(
            attention=[attention(width=width, layer=layer) for layer in range(layers)],
            norm=None if norm is None else norm(width=width),
        )


class LayerNorm(Part):
    def __init__(self, *, width: int, eps: float = 1e-5) -> None:
        super().__init__(width=width, eps=eps)


class ClassLoss(Part):
    def __init__(self, *, weight: float = 2.0, alpha: float | None = 0.25) -> None:
        super().__init__(weight=weight, alpha=alpha)


class BoxLoss(Part):
    def __init__(self, *, weight: float = 5.0) -> None:
        super().__init__(weight=weight)


@dataclass(frozen=True)
class Warmup:
    steps: Annotated[int, Field(ge=0)] = 0
    factor: float = 0.1


@dataclass(frozen=True)
class TrainOptions:
    epochs: Positive
    rate: Annotated[float, Field(gt=0)] = 1e-4
    drops: tuple[int, ...] = ()
    start: str | None = None
    warmup: Warmup = field(default_factory=Warmup)

    def __post_init__(self) -> None:
        if any(drop >= self.epochs for drop in self.drops):
            raise ValueError(f"drops {self.drops} do not lie within {self.epochs} epochs")


@pytest.fixture
def toys():
    """The registry with the toy parts, and nothing else."""
    with empty_registry() as registry:
        define_slot("encoder", offers=("width",))
        define_slot("attention", offers=("width", "layer"))
        define_slot("term", offers=("width", "layer"))
        define_slot("decoder", offers=("width",))
        define_slot("norm", offers=("width",))
        define_slot("loss")
        for slot, name, build in (
            ("encoder", "plain", PlainEncoder),
            ("encoder", "deformable", DeformableEncoder),
            ("attention", "terms", TermAttention),
            ("term", "content", ContentTerm),
            ("term", "gauss", GaussTerm),
            ("decoder", "standard", Decoder),
            ("norm", "layer", LayerNorm),
            ("loss", "class", ClassLoss),
            ("loss", "box", BoxLoss),
        ):
            register(slot, name)(build)
        define_section("encoder", Slot("encoder"))
        define_section("decoder", Slot("decoder"))
        define_section("losses", Annotated[dict[str, Factory], Slot("loss")])
        define_section("train", TrainOptions)
        yield registry


BASE = """\
title = "Base"
encoder = "plain"

[decoder]
type = "standard"
layers = 2

[decoder.attention]
type = "terms"
terms = ["content", { type = "gauss", scale = 2.0 }]

[losses.class]
weight = 1.0

[losses.box]

[train]
epochs = 50
drops = [40]
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file below the test's folder and returns its path."""

    def write_file(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def base(toys, write):
    """The path of a complete recipe over the toy parts."""
    return write("base.toml", BASE)


def problems_of(path, overrides=()):
    """All that is wrong with a recipe."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems
