"""What the constructors of parts refuse is told with the place where a recipe says it."""

from __future__ import annotations

import re

import pytest

from detrkit.errors import DataError, UserError
from detrkit.recipe import load_recipe, register


def picky(raised):
    class Picky:
        def __init__(self, *, low: int = 1, high: int = 2, told: str = "{}"):
            raise raised(told.format(f"low is {low}"))

    return Picky


@pytest.mark.parametrize(
    ("told", "overrides", "place"),
    [
        ("{}, more than high", [], "base.toml:21: losses.mine.low: "),
        ("{}, more than high", ["losses.mine.low=5"], "command line: losses.mine.low: "),
        ("high is less", [], "base.toml:20: losses.mine: "),  # a default, which nobody said
        ("high is less than low", ["losses.mine.high=0"], "command line: losses.mine.high: "),
        ("losses.mine.low and another.low", [], "base.toml:21: losses.mine.low: "),
        ("below and slow.low are no options, and so is allow = 1", [], "base.toml:20: losses.mine: "),
    ],
)
def test_what_a_constructor_refuses_is_told_with_its_place(base, told, overrides, place):
    register("loss", "picky")(picky(UserError))
    base.write_text(f'{base.read_text()}[losses.mine]\nlow = 9\ntype = "picky"\ntold = "{told}"\n')
    recipe = load_recipe(base, overrides)
    for _ in range(2):  # each time that it is built
        with pytest.raises(UserError) as caught:
            recipe.section("losses")["mine"]()
        assert str(caught.value).removeprefix(f"{base.parent}/") == place + told.format(
            f"low is {recipe.get('losses.mine.low')}"
        )


def test_the_innermost_part_is_the_one_that_is_named(base):
    class Picky:
        def __init__(self, *, width: int, low: int = 1):
            raise UserError("too low")

    register("term", "picky")(Picky)
    recipe = load_recipe(base, ["decoder.attention.terms=['content','picky']"])
    with pytest.raises(UserError, match=r"^command line: decoder\.attention\.terms\.1: too low$"):
        recipe.section("decoder")(width=8)


@pytest.mark.parametrize("raised", [ValueError, KeyError])
def test_other_errors_of_a_constructor_keep_their_kind_and_get_a_note(base, raised):
    register("loss", "picky")(picky(raised))
    recipe = load_recipe(base, ["losses.mine.type=picky"])
    with pytest.raises(raised) as caught:
        recipe.section("losses")["mine"]()
    assert caught.value.args == ("low is 1",)
    assert caught.value.__notes__ == ['(loss "picky" of command line: losses.mine)']


def test_data_that_cannot_be_used_is_no_mistake_of_the_recipe(base):
    register("loss", "picky")(picky(DataError))
    for told, place in [("x.json is damaged", ""), ("{}", "command line: losses.mine.low: ")]:
        recipe = load_recipe(base, ["losses.mine.type=picky", "losses.mine.low=4", f"losses.mine.told='{told}'"])
        with pytest.raises(DataError) as caught:
            recipe.section("losses")["mine"]()
        assert str(caught.value) == place + told.format("low is 4")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.augment={type='detr',crop_min=900}", "command line: data.augment.crop_min: crop_min is 900, more than"),
        ("data.augment={type='detr',crop_max=9}", "command line: data.augment.crop_max: crop_min is 384, more than"),
        ("data.sizes=[0.5,0.2]", "command line: data.sizes: sizes is [0.5, 0.2], must be [least, most]"),
        (
            "data.augment={type='by_epoch',stages={a='none'},changes=[3]}",
            "command line: data.augment.changes: changes are",
        ),
    ],
)
def test_an_augmentation_and_data_are_placed_too(override, said):
    with pytest.raises(DataError, match=f"^{re.escape(said)}"):
        load_recipe("quickstart", [override]).section("data")()
