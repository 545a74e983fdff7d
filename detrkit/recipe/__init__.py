"""Recipes: TOML files that name parts and their options, read, merged and checked before they are built."""

from detrkit.recipe.hand import as_factory, part
from detrkit.recipe.library import RecipeEntry, broken_recipes, list_recipes
from detrkit.recipe.options import Options
from detrkit.recipe.problems import Problem, RecipeError
from detrkit.recipe.recipe import Recipe, load_recipe, load_run_recipe, parse_recipe
from detrkit.recipe.registry import Factory, Given, Slot, broken_plugins, define_section, define_slot, register

__all__ = [
    "Factory",
    "Given",
    "Options",
    "Problem",
    "Recipe",
    "RecipeEntry",
    "RecipeError",
    "Slot",
    "as_factory",
    "broken_plugins",
    "broken_recipes",
    "define_section",
    "define_slot",
    "list_recipes",
    "load_recipe",
    "load_run_recipe",
    "parse_recipe",
    "part",
    "register",
]
