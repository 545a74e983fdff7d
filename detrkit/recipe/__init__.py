"""Recipes: TOML files that name parts and their options, read, merged and checked before anything is built."""

from detrkit.recipe.registry import Factory, Slot, define_section, define_slot, register

__all__ = ["Factory", "Slot", "define_section", "define_slot", "register"]
