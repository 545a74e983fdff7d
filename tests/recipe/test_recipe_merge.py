"""Properties of merging, and of writing a recipe and reading it again."""

from __future__ import annotations

import copy
import tomllib

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detrkit.recipe import load_recipe
from detrkit.recipe.layers import merge
from detrkit.recipe.lines import key_lines
from detrkit.recipe.overrides import layer_of
from detrkit.recipe.problems import Source, format_value

keys = st.text(min_size=1, max_size=4) | st.sampled_from("abc")
scalars = st.integers(-5, 5) | st.booleans() | st.floats(-1, 1) | st.text(max_size=5)
leaves = scalars | st.lists(scalars, max_size=3)
tables = st.recursive(
    st.dictionaries(keys, leaves, max_size=3),
    lambda inner: st.dictionaries(keys, leaves | inner | st.lists(inner, max_size=2), max_size=3),
    max_leaves=8,
)
# A string laid over a table names a part: the plain properties of merging hold where neither meets the other.
plain_tables = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4), max_leaves=10
).filter(lambda value: isinstance(value, dict))
plain_recipes = st.fixed_dictionaries(
    {},
    optional={
        "encoder": st.fixed_dictionaries(
            {"type": st.just("plain")},
            optional={
                "layers": st.integers(1, 9),
                "dropout": st.floats(0, 0.99),
                "activation": st.sampled_from(["relu", "gelu"]),
            },
        )
        | st.fixed_dictionaries(
            {"type": st.just("deformable"), "points": st.integers(1, 9)},
            optional={"sizes": st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2)},
        )
        | st.just("plain"),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.integers(50, 99),
                "drops": st.lists(st.integers(0, 49)),
                "start": st.text(),
                "rate": st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False) | st.integers(1, 3),
                "warmup": st.fixed_dictionaries({}, optional={"steps": st.integers(0, 9)}),
            },
        ),
        "losses": st.fixed_dictionaries(
            {},
            optional={
                "class": st.just("none") | st.fixed_dictionaries({"alpha": st.floats(0, 1) | st.just("none")}),
                "other": st.fixed_dictionaries({"type": st.just("box"), "weight": st.floats(0, 9)}),
            },
        ),
    },
)


def no_type(values, path):
    return None


def layer(values, file):
    return layer_of([((key,), value) for key, value in values.items()], Source(file))


@given(plain_tables, plain_tables, plain_tables)
def test_merging_is_associative_and_keeps_its_arguments(first, second, third):
    layers = [layer(copy.deepcopy(values), str(i)) for i, values in enumerate((first, second, third))]
    left = merge(merge(layers[0], layers[1], no_type), layers[2], no_type)
    right = merge(layers[0], merge(layers[1], layers[2], no_type), no_type)
    # A table over a number replaces it; over a table it merges. Associative where no number parts two tables.
    if not _number_between_tables(first, second, third):
        assert left.values == right.values
    assert [one.values for one in layers] == [first, second, third]


def _number_between_tables(first, second, third):
    if not (isinstance(first, dict) and isinstance(third, dict)):
        return False
    if not isinstance(second, dict):
        return True
    return any(
        key in third and key in second and _number_between_tables(first[key], second[key], third[key]) for key in first
    )


@given(plain_tables, plain_tables)
def test_every_value_of_a_merge_comes_from_the_side_that_said_it_last(first, second):
    merged = merge(layer(first, "first"), layer(second, "second"), no_type)
    assert merge(merged, layer(second, "second"), no_type).values == merged.values
    for path, value in _leaves(merged.values):
        said = _at(second, path)
        assert merged.sources[path] == Source("second" if said is not None else "first")
        assert value == (said if said is not None else _at(first, path))


def _leaves(table, path=()):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _at(table, path):
    for key in path:
        if not isinstance(table, dict) or key not in table:
            return None
        table = table[key]
    return table


@given(tables)
def test_the_lines_of_a_written_document_are_those_of_its_keys(values):
    text = tomli_w.dumps(values)
    lines = text.split("\n")
    found = key_lines(text)
    for path, line in found.items():
        if isinstance(path[-1], str) and path[-1].isalnum():  # other keys are written with escapes
            assert path[-1] in lines[line - 1]
    assert {path for path, _ in _leaves(tomllib.loads(text))} <= set(found)


@given(leaves | tables)
def test_a_value_in_a_message_is_toml(value):
    text = format_value(value)
    if text.isprintable():
        assert tomllib.loads(f"value = {text}")["value"] == value


@pytest.mark.parametrize("defaults", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(values=plain_recipes)
def test_a_written_recipe_reads_back_as_itself(base, defaults, values):
    child = base.parent / "child.toml"
    child.write_text(tomli_w.dumps({"extends": "base", **values}), encoding="utf-8")
    recipe = load_recipe(child)
    alone = base.parent / "alone" / "recipe.toml"
    alone.parent.mkdir(exist_ok=True)
    alone.write_text(recipe.to_toml(defaults=defaults), encoding="utf-8")
    again = load_recipe(alone)
    assert dict(again.sections) == dict(recipe.sections)
    assert again.to_toml(defaults=True) == recipe.to_toml(defaults=True)
    if not defaults:
        assert again.values == recipe.values


def test_a_recipe_shows_itself_in_a_line():
    assert repr(load_recipe("quickstart")) == "Recipe('quickstart', title='SAP-DETR, small, on the built-in shapes')"
