"""The published tables, and what recipes say of them."""

import pytest

from detrkit.recipe import list_recipes
from detrkit.zoo.published import PublishedError, find_published, published_results


@pytest.mark.parametrize("entry", list_recipes(), ids=lambda entry: entry.name)
def test_every_shipped_recipe_names_one_row_or_none(entry):
    row = find_published(entry.reproduces)
    assert (row is None) == (not entry.reproduces)
    assert row is None or 0 < row["AP"] < 100


def test_a_row_is_found_by_whatever_tells_it_apart():
    row = find_published({"table": "2", "method": "SAP-DETR-R50", "epochs": 50})
    assert (row["AP"], row["params_m"], row["gflops"]) == (43.1, 47.0, 92.0)
    assert find_published({"table": "3", "method": "DN-DETR", "backbone": "DC5-R50"})["AP"] == 41.7
    assert find_published({}) is None
    assert {row["table"] for row in published_results()} >= {"1", "2", "3", "4", "5", "6", "rt_detr", "dino", "h_detr"}


def test_a_row_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(PublishedError, match=r"(?s)no published row.*SAP-DETR-DC5-R50"):
        find_published({"table": "2", "method": "SAP-DETR-DC5-R5", "epochs": 50})


def test_a_name_of_two_rows_says_what_would_tell_them_apart():
    with pytest.raises(PublishedError, match=r"(?s)fits 2 published rows; add group .*3-Layer.*6-Layer"):
        find_published({"table": "1", "method": "SAP-DETR-R50", "epochs": 12})
