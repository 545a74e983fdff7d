"""The pages of recipes: which ship, which parts they use, and all that a recipe can say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

from docstrings import markdown, read_docstring
from draw_architecture import own_parts
from part_pages import anchor, option_rows, options_table, part_page, places, slots

from detrkit.recipe import Factory, list_recipes, load_recipe, registry
from detrkit.recipe.parameters import classify, parameters_of
from detrkit.recipe.plugins import OWN
from detrkit.zoo.published import find_published

RECIPE, RECIPES = "reference/recipe.md", "reference/recipes.md"  # addresses, from the site's root
HEAD = {
    "extends": "a recipe's name, a file beside this one, or a list of them, that this one is laid over",
    "title": "one line that says what the recipe is",
    "description": "what there is to say beyond it",
    "reproduces": "the published row that the recipe is meant to reach: the keys that tell it from the others, such as "
    '{ table = "1", method = "SAP-DETR-R50", epochs = 36 }',
    "imports": "Python files, or modules, that register parts of your own",
}
"""The keys that stand above all tables."""
RECIPE_HEAD = """\
A recipe is a TOML file. Tables merge with those of the base key by key; a `type` that changes drops the old type's
options; a named part with `type = "none"` is left out. On the command line any option is `KEY=VALUE`, such as
`train.epochs=12`. `"none"` stands for no value, which TOML has no word for."""
RECIPES_HEAD = """\
`detrkit recipes` lists them too, and `detrkit inspect NAME` shows one whole. The last columns are the published row
that a recipe reproduces (tables of the SAP-DETR paper, COCO val2017): the authors' figures, not detrkit's."""


@lru_cache(maxsize=1)
def users() -> Mapping[tuple[str, str], list[str]]:
    """The shipped recipes that use a part, by slot and name."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in list_recipes():
        if entry.package == OWN:
            recipe = load_recipe(entry.name)
            for part in {(one.slot, one.name) for one in _parts(recipe.sections)}:
                found.setdefault(part, []).append(entry.name)
    return found


def _parts(value: Any) -> Iterator[Factory]:
    if isinstance(value, Factory):
        yield value
        yield from _parts(value.parts)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _parts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _parts(one)
    elif is_dataclass(value):
        yield from _parts(vars(value))


def build_recipes_page() -> str:
    """The shipped recipes with their published rows, folder by folder."""
    entries = [one for one in list_recipes() if one.package == OWN]
    lines = ["# Shipped recipes", "", f"{len(entries)} recipes. {RECIPES_HEAD}", ""]
    entries.sort(key=lambda one: (one.folder, one.name))
    for folder, group in groupby(entries, key=lambda one: one.folder):
        lines += [f"## {folder or 'Systems'}", ""]
        lines += ["| recipe | title | table | published AP |", "| --- | --- | --- | ---: |"]
        for entry in group:
            row = find_published(entry.reproduces)
            published = f"{row['table']} | {row['AP']:.1f}" if row else "|"
            name = f'<a id="{anchor(entry.name)}"></a>`{entry.name}`'
            lines.append(f"| {name} | {markdown(entry.title)} | {published} |")
        lines.append("")
    return "\n".join(lines)


def build_recipe_page() -> str:
    """Every table and option of a recipe."""
    lines = ["# What a recipe can say", "", RECIPE_HEAD, "", "## Above all tables", ""]
    lines += ["| key | meaning |", "| --- | --- |"]
    lines += [f"| `{key}` | {markdown(said)} |" for key, said in HEAD.items()]
    lines.append("")
    for section in registry.sections().values():
        parameter = classify(section.name, section.annotation, section.default)
        if parameter.kind == "group":
            lines += [f"## {section.name}", "", markdown(read_docstring(parameter.annotation.__doc__).summary), ""]
            lines += [*options_table(parameter.annotation, parameters_of(parameter.annotation).values(), "../"), ""]
        else:
            default = parameter.default if isinstance(parameter.default, str) else ""
            lines += _slot(parameter.slot, f"{section.name}", default)
    lines += ["# Parts within parts", ""]
    top = {classify(one.name, one.annotation, one.default).slot for one in registry.sections().values()}
    for slot in slots():
        if slot not in top and slot != "checkpoint_names":
            lines += _slot(slot, places()[slot][0][0], "")
    return "\n".join(lines)


def _slot(slot: str, title: str, default: str) -> list[str]:
    kind = places()[slot][0][1]
    keys = ", ".join(f"`{path}`" for path, _ in places()[slot])
    told = {"part": "one part", "list": "a list of parts", "named": "parts, each under a name of yours"}[kind]
    said = f'; `type = "{default}"` where it says nothing' if default else ""
    lines = [f"## {title}", "", f"{keys}: {told} of the slot [{slot}](../parts/{slot}/index.md){said}.", ""]
    for name in own_parts(slot):
        rows = option_rows(slot, name)
        build = registry.parts(slot)[name]
        lines += [f"### {slot}: {name} {{ #{slot}-{name} }}", ""]
        summary = markdown(read_docstring(build.__doc__).summary)
        lines += [f"{summary} [Its page](../{part_page(slot, name)}).".strip(), ""]
        lines += [*options_table(build, rows, "../"), ""] if rows else ["It has no options.", ""]
    return lines
