"""Bases of a recipe that are not there, cannot be read or go in a circle, each named where it is asked for."""

from __future__ import annotations

import pytest

from detrkit.errors import UserError
from detrkit.recipe import load_recipe

from .conftest import problems_of


def test_a_missing_recipe_suggests_the_nearest_shipped_one(toys, monkeypatch):
    monkeypatch.setattr("detrkit.recipe.recipe.recipe_names", lambda: ["sap_detr_r50", "dab_detr_r50"])
    with pytest.raises(UserError, match=r'^sap_detr_50: there is no such file .* did you mean "sap_detr_r50"'):
        load_recipe("sap_detr_50")


def test_a_missing_base_is_named_and_what_it_may_hold_is_not_called_missing(toys, write, monkeypatch):
    monkeypatch.setattr("detrkit.recipe.reading.recipe_names", lambda: ["base/sap_detr"])
    path = write("mine.toml", '\nextends = "base/sapdetr"\n[encoder]\nlayers = 3\n[train]\nrat = 1\n')
    problems = problems_of(path)
    assert [(p.line, p.key) for p in problems] == [(2, "extends"), (6, "train.rat")]
    assert 'did you mean "base/sap_detr"' in problems[0].message


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ('extends = ""', 1, "extends", "is empty, should be the name of a recipe"),
        ('extends = "."', 1, "extends", "name a .toml file in it"),
        (f'extends = "{300 * "x"}"', 1, "extends", "File name too long"),
        ('[train]\nepochs = 3\nextends = "base"', 3, "train.extends", "stands in the table [train]"),
        ('[decoder.norm]\nextends = "base"', 2, "decoder.norm.extends", "above the first [table] of a file"),
        ('[train]\nimports = ["mine.py"]', 2, "train.imports", "stands in the table [train]"),
    ],
)
def test_a_base_that_cannot_be_is_told_of_its_line(base, write, text, line, key, words):
    [problem] = problems_of(write("mine.toml", text))
    assert (problem.line, problem.key) == (line, key)
    assert words in problem.message


def test_a_circle_is_shown_as_a_chain(toys, write, monkeypatch):
    monkeypatch.chdir(write("a.toml", 'extends = "b"\n').parent)
    write("b.toml", '\nextends = ["c"]\n')
    write("c.toml", 'extends = "a"\n')
    [problem] = problems_of("a.toml")
    assert (problem.file, problem.line) == ("c.toml", 1)
    assert problem.message == "goes in a circle: a.toml extends b.toml extends c.toml extends a.toml"


def test_a_recipe_that_extends_itself_is_a_circle(toys, write):
    [problem] = problems_of(write("a.toml", 'extends = "a"\n'))
    assert "goes in a circle" in problem.message


def test_a_broken_base_is_named_once_and_as_itself(base, write):
    write("broken.toml", "x = = 1\n")
    write("between.toml", 'extends = "broken"\n')
    problems = problems_of(write("mine.toml", 'extends = ["base", "broken", "between"]\n'))
    assert [p.file.endswith("broken.toml") for p in problems] == [True]


def test_wrong_extends_is_named(base, write):
    [problem] = [p for p in problems_of(write("mine.toml", "extends = 3\n")) if p.key == "extends"]
    assert "the name of a recipe or a list of names" in problem.message
