"""MkDocs' hook (mkdocs.yml): adds the pages that are made from the code, and those that stand beside docs/.

`mkdocs build --strict` writes the site to site/, `mkdocs serve` shows it. Nothing is fetched, then or when it is read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docstrings import markdown, read_docstring
from draw_architecture import own_parts
from part_pages import (
    PARTS,
    STRUCTURES,
    build_part_page,
    build_parts_index,
    build_slot_page,
    build_structures_page,
    part_page,
    slot_page,
    slots,
)
from recipe_pages import RECIPE, RECIPES, build_recipe_page, build_recipes_page, users

from detrkit.recipe import registry

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BESIDE = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}
"""Pages that stand beside docs/, by what a page in docs/ calls them, and their addresses on the site."""
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
"""Scripts that use parts in other detectors; each gets a page below `USES`."""
USES = "parts_in_your_detector.md"


def made_pages() -> dict[str, Callable[[], str]]:
    """Every page that is made from the code or stands elsewhere: its address, and what gives its Markdown."""
    registry.load_registered_parts()
    pages: dict[str, Callable[[], str]] = {
        PARTS: build_parts_index,
        STRUCTURES: build_structures_page,
        RECIPE: build_recipe_page,
        RECIPES: build_recipes_page,
    }
    for slot in slots():
        pages[slot_page(slot)] = lambda slot=slot: build_slot_page(slot, users())
        for name in own_parts(slot):
            pages[part_page(slot, name)] = lambda slot=slot, name=name: build_part_page(slot, name, users())
    for name, address in BESIDE.items():
        pages[address] = partial((ROOT / "docs" / name).read_text, encoding="utf-8")
    for path in sorted(RESULTS.glob("*.md")):
        pages[f"results/{path.name}"] = partial(result_page, path)
    for path in EXAMPLES:
        pages[f"examples/{path.stem}.md"] = partial(example_page, path)
    return pages


def result_page(path: Path) -> str:
    """A table of figures, with its picture where there is one."""
    text = f"# {path.stem}\n\nThe command stands on [the page of all figures](../results.md).\n\n"
    if path.with_suffix(".png").exists():
        text += f"![AP over epochs and over minutes of training, a line for each row]({path.stem}.png)\n\n"
    return text + path.read_text(encoding="utf-8")


def example_page(path: Path) -> str:
    """A script: its docstring, then all of it."""
    text = path.read_text(encoding="utf-8")
    doc = read_docstring(ast.get_docstring(ast.parse(text)))
    told = "\n\n".join(markdown(paragraph) for paragraph in (doc.summary, *doc.body))
    return f'# {path.name}\n\n{told}\n\n```python title="examples/{path.name}"\n{text}```\n'


def navigation(entries: list[Any]) -> list[Any]:
    """The nav of mkdocs.yml, with what there is below the page of all slots, and below that of parts elsewhere."""
    told: list[Any] = []
    for entry in entries:
        [(title, target)] = entry.items()
        if isinstance(target, list):
            target = navigation(target)
        elif target == PARTS:
            target = [PARTS, {"From part to part": STRUCTURES}]
            for slot in slots():
                target.append({slot: [slot_page(slot), *({name: part_page(slot, name)} for name in own_parts(slot))]})
        elif target == USES:
            target = [USES, *(f"examples/{path.stem}.md" for path in EXAMPLES)]
        told.append({title: target})
    return told


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    registry.load_registered_parts()
    config.nav = navigation(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for address, build in made_pages().items():
        files.append(File.generated(config, address, content=build()))
    for path in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, **_: Any) -> str:
    """Links to what stands beside docs/ as the site has it; in the repository they work as they are written."""
    for name, address in BESIDE.items():
        text = text.replace(f"]({name})", f"]({address})")
    text = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", text)
    return re.sub(r"\]\(\.\./benchmarks/results/", "](results/", text)


def on_post_build(config: MkDocsConfig) -> None:
    """The search's index also as a script, which a browser reads from a folder (see docs/site.js)."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")
