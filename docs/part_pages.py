"""The pages of slots, of parts and of what goes from part to part: all that they say is read off the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from html import escape
from typing import Any

from docstrings import attribute_docs, markdown, meanings, read_docstring
from draw_architecture import own_parts

import detrkit.structures
from detrkit.layers import Part
from detrkit.recipe import registry
from detrkit.recipe.options import describe
from detrkit.recipe.overrides import plain
from detrkit.recipe.parameters import Parameter, classify, parameters_of, part_parameters
from detrkit.recipe.problems import format_value
from detrkit.recipe.registry import REQUIRED

PARTS, STRUCTURES = "parts/index.md", "parts/structures.md"
SHOWN = 8  # recipes that stand in the open; more are folded away


def slots() -> list[str]:
    """The slots, in the order in which a recipe comes upon them."""
    return list(dict.fromkeys(places()))


def places() -> dict[str, list[tuple[str, str]]]:
    """For each slot the keys of a recipe at which its parts stand, each with how: "part", "list" or "named"."""
    found: dict[str, list[tuple[str, str]]] = {}

    def visit(parameter: Parameter, path: str, above: tuple[str, ...] = ()) -> None:
        place = path, parameter.kind
        if place in found.setdefault(parameter.slot, []):
            return
        found[parameter.slot].append(place)
        if parameter.slot in above:  # a part that takes another of its own kind, and so on
            return
        for name in own_parts(parameter.slot):
            for inner in option_rows(parameter.slot, name):
                if inner.slot:
                    step = f"{path}.NAME.{inner.name}" if parameter.kind == "named" else f"{path}.{inner.name}"
                    visit(inner, step, (*above, parameter.slot))

    for section in registry.sections().values():
        parameter = classify(section.name, section.annotation, section.default)
        if parameter.slot:
            visit(parameter, section.name)
        elif parameter.kind == "group":
            for inner in parameters_of(parameter.annotation).values():
                if inner.slot:
                    visit(inner, f"{section.name}.{inner.name}")
    return found


def option_rows(slot: str, name: str) -> list[Parameter]:
    """What a recipe can say of a part; tables of names to convert by are made by functions, which take nothing."""
    return [one for one in part_parameters(slot, name).values() if one.kind != "offered"]


def slot_page(slot: str) -> str:
    """The address of a slot's page, from the site's root."""
    return f"parts/{slot}/index.md"


def part_page(slot: str, name: str) -> str:
    """The address of a part's page, from the site's root."""
    return f"parts/{slot}/{name}.md"


def options_table(build: Callable[..., Any], rows: Iterable[Parameter], up: str, prefix: str = "") -> list[str]:
    """The options as a table: name, what is accepted, default, meaning. up: the way to the site's root."""
    return ["| option | accepted | default | meaning |", "| --- | --- | --- | --- |", *_rows(build, rows, up, prefix)]


def _rows(build: Callable[..., Any], rows: Iterable[Parameter], up: str, prefix: str) -> list[str]:
    said, lines = meanings(build), []
    for one in rows:
        meaning = markdown(_resolved(said.get(one.name, ""), one.name))
        if one.kind == "group":
            lines.append(f"| `{prefix}{one.name}` | a table | | {meaning} |")
            fields = parameters_of(one.annotation).values()
            own = [_with_default(field, one.default) for field in fields]
            lines += _rows(one.annotation, own, up, f"{prefix}{one.name}.")
            continue
        accepted = _accepted(one, up)
        lines.append(f"| `{prefix}{one.name}` | {accepted} | {_default(one)} | {meaning} |")
    return lines


def _with_default(field: Parameter, group: Any) -> Parameter:
    default = getattr(group, field.name, field.default)
    return Parameter(field.name, field.kind, field.annotation, field.slot, field.optional, default)


def _resolved(meaning: str, option: str) -> str:
    """The meaning itself where a docstring says that it is another part's: "as for `coco`"."""
    found = re.fullmatch(r"as for `+(\w+)`+\.?", meaning)
    if not found:
        return meaning
    [owner] = [build for listed in (registry.parts(slot) for slot in registry.slots())
               for name, build in listed.items() if name == found[1] and option in meanings(build)]  # fmt: skip
    return meanings(owner)[option]


def _accepted(one: Parameter, up: str) -> str:
    if not one.slot:
        return markdown(describe(one.annotation))
    link = f"[{one.slot}]({up}parts/{one.slot}/index.md)"
    forms = {"part": f"a part of {link}", "list": f"a list of parts of {link}", "named": f"parts of {link} by name"}
    return forms[one.kind] + (' or "none"' if one.optional and one.kind == "part" else "")


def _default(one: Parameter) -> str:
    if one.default is REQUIRED:
        return "none, it has to be said" if one.kind != "named" else "empty"
    text = '"none"' if one.default is None else format_value(plain(one.default))
    return f"<code>{escape(text, quote=False)}</code>"


def build_part_page(slot: str, name: str, users: Mapping[tuple[str, str], list[str]]) -> str:
    """The page of a part."""
    build, base = registry.parts(slot)[name], registry.slots()[slot].base
    doc, up = read_docstring(build.__doc__), "../../"
    parameters = part_parameters(slot, name)
    offered = [one.name for one in parameters.values() if one.kind == "offered"]
    own = option_rows(slot, name)
    lines = [f"# {slot}: {name}", "", markdown(doc.summary), ""]
    for paragraph in doc.body:
        lines += [markdown(paragraph), ""]
    for need in doc.needs:
        lines += ['!!! note "What it needs"', "", f"    {markdown(need)}", ""]
    lines += ["## In a recipe", "", *_in_a_recipe(slot, name), ""]
    if own:
        lines += [*options_table(build, own, up), ""]
    if offered:
        said = meanings(build)
        told = [f"`{one}` ({markdown(said[one].rstrip('.'))})" if said.get(one) else f"`{one}`" for one in offered]
        lines += [f"The model around it hands over {', '.join(told)}.", ""]
    if base is not None:
        lines += ["## In Python", "", f"    from {build.__module__} import {build.__qualname__}"]
        lines += [f"    {_signature(build, parameters)}", ""]
        for method in _methods(base):
            if getattr(build, method, None) is not getattr(base, method, None):
                lines += _method(build, base, method, up)
    return "\n".join([*lines, "## Recipes that use it", "", *_users(users.get((slot, name), []), up), ""])


def _in_a_recipe(slot: str, name: str) -> list[str]:
    lines = []
    for path, kind in places()[slot]:
        said = {"part": f'{path}.type = "{name}"', "list": f'{path} = [..., "{name}"]',
                "named": f'{path}.NAME = {{ type = "{name}" }}'}[kind]  # fmt: skip
        lines.append(f"    {said}")
    return lines


def _signature(build: Callable[..., Any], parameters: Mapping[str, Parameter]) -> str:
    told = []
    for one in parameters.values():
        default = "" if one.default is REQUIRED else f"={_default_in_python(one)}"
        told.append(f"{one.name}{default}")
    text = f"{build.__qualname__}({', '.join(told)})"
    if len(text) < 90:
        return text
    return f"{build.__qualname__}(\n" + "".join(f"        {one},\n" for one in told) + "    )"


def _default_in_python(one: Parameter) -> str:
    return repr(one.default) if not one.slot else repr(plain(one.default))


def _methods(base: type) -> list[str]:
    """What others ask of the parts of a slot, as its base class has it."""
    own = [name for name, value in vars(base).items() if inspect.isfunction(value)]
    return [name for name in own if not name.startswith("_") or name == "__call__"]


def _method(owner: type, base: type, name: str, up: str) -> list[str]:
    """What the base class says of a method, shapes and all, and what the part's own says beyond it."""
    signature = inspect.signature(vars(base)[name])
    arguments = [str(one).replace("'", "") for one in signature.parameters.values() if one.name != "self"]
    returned = signature.return_annotation
    gives = "" if returned is inspect.Signature.empty else f" -> {str(returned).replace(chr(39), '')}"
    text = _link_structures(markdown(f"{name}({', '.join(arguments)}){gives}"), up)
    doc, own = read_docstring(vars(base)[name].__doc__), read_docstring(getattr(owner, name).__doc__)
    lines = [f"<code>{text}</code>", f":   {markdown(doc.summary)}", ""]
    for paragraph in [*doc.body, *([own.summary, *own.body] if own.summary != doc.summary else [])]:
        lines += [f"    {markdown(paragraph)}", ""]
    said = [*doc.options.items(), *doc.raised.items()]
    lines += [f"    - `{key}`: {markdown(value)}" for key, value in said]
    return [*lines, ""]


def _link_structures(text: str, up: str) -> str:
    """Markdown in which the names of what goes from part to part lead to their place."""
    known = "|".join(one.__name__ for one in structures())
    return re.sub(rf"\b({known})\b", lambda one: f"[{one[1]}]({up}{STRUCTURES}#{one[1].lower()})", text)


def _users(names: list[str], up: str) -> list[str]:
    if not names:
        return ["No shipped recipe names it."]
    links = [f"[{name}]({up}reference/recipes.md#{anchor(name)})" for name in names]
    if len(links) <= SHOWN:
        return [f"- {one}" for one in links]
    return [f'??? abstract "{len(links)} recipes"', "", *(f"    - {one}" for one in links)]


def anchor(recipe: str) -> str:
    """The place of a recipe on the page of all recipes."""
    return recipe.replace("/", "-")


def build_slot_page(slot: str, users: Mapping[tuple[str, str], list[str]]) -> str:
    """The page of a slot: what is asked of its parts, and which there are."""
    definition = registry.slots()[slot]
    base = definition.base
    doc = read_docstring(_described_by(slot).__doc__)
    lines = [f"# {slot}", "", markdown(doc.summary), ""]
    for paragraph in [*doc.body, *doc.needs]:
        lines += [markdown(paragraph), ""]
    keys = ", ".join(f"`{path}`" for path, _ in places()[slot])
    lines += [f"In a recipe: {keys}.", "", "## Parts", ""]
    lines += ["| part | what it is | recipes |", "| --- | --- | ---: |"]
    for name in own_parts(slot):
        said = markdown(read_docstring(registry.parts(slot)[name].__doc__).summary)
        lines.append(f"| [{name}]({name}.md) | {said} | {len(users.get((slot, name), []))} |")
    if base is None:
        return "\n".join([*lines, ""])
    lines += ["", "## What is asked of them", "", f"The base class is `{base.__module__}.{base.__qualname__}`."]
    if definition.offers:
        lines.append(f"A part that names them gets {', '.join(f'`{one}`' for one in definition.offers)} from the model "
                     "around it.")  # fmt: skip
    lines += ["How to write one: [parts of your own](../../own_parts.md).", ""]
    everywhere = attribute_docs(Part)
    for name, said in attribute_docs(base).items():
        if everywhere.get(name) != said:
            lines += [f"`{name}`", f":   {markdown(said)}", ""]
    for method in _methods(base):
        lines += _method(base, base, method, "../../")
    return "\n".join([*lines, ""])


def _described_by(slot: str) -> type:
    """The class whose docstring says what a slot's parts are: its base class, or what functions in its place give."""
    base = registry.slots()[slot].base
    return base or type(registry.parts(slot)[own_parts(slot)[0]]())


def build_parts_index() -> str:
    """The page of all slots."""
    lines = ["# Slots and parts", "",
             "A slot is a place in the loop; a part fills it. What stands on these pages is read off the code: the",
             "docstrings, the constructors' annotations, the shipped recipes. Shapes: "
             f"[what goes from part to part]({STRUCTURES.removeprefix('parts/')}).", "",
             "| slot | what its parts do | parts |", "| --- | --- | --- |"]  # fmt: skip
    for slot in slots():
        said = markdown(read_docstring(_described_by(slot).__doc__).summary)
        listed = ", ".join(f"[{name}]({slot}/{name}.md)" for name in own_parts(slot))
        lines.append(f"| [{slot}]({slot}/index.md) | {said} | {listed} |")
    return "\n".join([*lines, ""])


def structures() -> list[type]:
    """What crosses a part's border."""
    return [one for one in vars(detrkit.structures).values() if isinstance(one, type) and is_dataclass(one)]


def build_structures_page() -> str:
    """The page of what goes from part to part, with the shapes."""
    doc = read_docstring(detrkit.structures.__doc__)
    lines = ["# From part to part", "", markdown(doc.summary), ""]
    for paragraph in doc.body:
        lines += [markdown(paragraph), ""]
    for one in structures():
        own = read_docstring(one.__doc__)
        lines += [f"## {one.__name__} {{ #{one.__name__.lower()} }}", "", markdown(own.summary), ""]
        for paragraph in own.body:
            lines += [markdown(paragraph), ""]
        for name, said in attribute_docs(one).items():
            lines += [f"`{name}`", f":   {markdown(said)}", ""]
    return "\n".join(lines)
