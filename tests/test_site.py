"""The documentation site (mkdocs.yml, docs/build_site.py): what its pages are made of, and that it holds together."""

import importlib
import inspect
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from detrkit.recipe import registry
from detrkit.recipe.parameters import classify, parameters_of, part_parameters

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site():
    """docs/build_site.py with its neighbours, as MkDocs loads it."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("build_site")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture
def docstrings(site):
    return sys.modules["docstrings"]


@pytest.fixture
def pages(site, monkeypatch):
    """Every page as Markdown, by address; without the recipes that use a part, which take seconds to read."""
    monkeypatch.setattr(site, "users", dict)
    made = {address: build() for address, build in site.made_pages().items()}
    written = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    assert not made.keys() & written.keys()
    return {address: site.on_page_markdown(text) for address, text in (made | written).items()}


def own_parts():
    registry.load_registered_parts()
    return [
        (slot, name)
        for slot in registry.slots()
        for name, build in registry.parts(slot).items()
        if build.__module__.startswith("detrkit.")
    ]


def flat(nav):
    for entry in nav:
        target = entry if isinstance(entry, str) else next(iter(entry.values()))
        yield from [target] if isinstance(target, str) else flat(target)


def config():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_every_slot_and_part_has_a_page_that_the_nav_leads_to(site):
    made, led_to = site.made_pages(), list(flat(site.navigation(config()["nav"])))
    expected = {f"parts/{slot}/index.md" for slot in registry.slots()}
    expected |= {f"parts/{slot}/{name}.md" for slot, name in own_parts()}
    assert expected <= made.keys()
    assert expected <= set(led_to)
    assert len(led_to) == len(set(led_to))


def test_every_entry_of_the_nav_is_a_page_and_every_page_is_in_the_nav(site):
    led_to = set(flat(site.navigation(config()["nav"])))
    there = site.made_pages().keys() | {path.name for path in DOCS.glob("*.md")}
    assert led_to <= there
    assert {page for page in there - led_to if not page.startswith("results/")} == set()


def test_every_link_leads_to_a_page_or_file(pages):
    files = {path.name for path in DOCS.iterdir()} | {f"results/{p.name}" for p in ROOT.glob("benchmarks/results/*")}
    for address, text in pages.items():
        bare = re.sub(r"(?m)^ {4}.*$|`[^`\n]*`", "", text) if "/" not in address else text
        for target in re.findall(r"\]\(([^)\s]+)\)", bare):
            path = urlsplit(target).path
            if path and not urlsplit(target).scheme:
                found = posixpath.normpath(posixpath.join(posixpath.dirname(address), path))
                assert found in pages.keys() | files, f"{address}: {target}"


def test_every_picture_is_told_in_words(pages):
    """For those who do not see it."""
    assert sum(text.count("![") for text in pages.values()) > 8
    assert [address for address, text in pages.items() if "![](" in text] == []


def test_the_recipes_that_use_a_part_are_found_in_all_its_places(site, monkeypatch):
    recipes = sys.modules["recipe_pages"]
    entries = {entry.name: entry for entry in recipes.list_recipes()}
    chosen = ["quickstart", "sap_dino_r50_12ep", "faster_rcnn_r50_108ep"]
    monkeypatch.setattr(recipes, "list_recipes", lambda: [entries[name] for name in chosen])
    users = recipes.users.__wrapped__()
    assert users["term", "side_directed_gaussian"] == chosen[:2]  # in a list, in a part, in a part
    assert users["cost", "inner"] == chosen[:2]  # by name, in a part
    assert users["block", "contrastive"] == chosen[1:2]
    assert users["detector", "faster_rcnn"] == chosen[2:]
    assert ("geometry", "box") not in users
    page = sys.modules["part_pages"].build_part_page("block", "contrastive", users)
    assert "- [sap_dino_r50_12ep](../../reference/recipes.md#sap_dino_r50_12ep)" in page
    assert '<a id="sap_dino_r50_12ep"></a>' in recipes.build_recipes_page()


@pytest.mark.parametrize(("slot", "name"), own_parts())
def test_a_part_s_docstring_says_what_it_does_and_what_each_option_means(docstrings, slot, name):
    build = registry.parts(slot)[name]
    doc, said = docstrings.read_docstring(build.__doc__), docstrings.meanings(build)
    assert doc.summary
    for option, parameter in part_parameters(slot, name).items():
        assert said.get(option), f"{slot} {name}: {option}"
        if parameter.kind == "group":
            assert docstrings.meanings(parameter.annotation).keys() >= parameters_of(parameter.annotation).keys()
    assert doc.options.keys() <= part_parameters(slot, name).keys(), "told of, and no option"


def test_every_option_of_a_section_has_a_meaning(docstrings):
    registry.load_registered_parts()
    for section in registry.sections().values():
        parameter = classify(section.name, section.annotation, section.default)
        if parameter.kind == "group":
            assert docstrings.meanings(parameter.annotation).keys() == parameters_of(parameter.annotation).keys()


def test_what_a_part_needs_stands_in_its_docstring(docstrings):
    """The parts that docs/mixing.md's first table has: it is for people, the docstrings for all pages."""
    registry.load_registered_parts()
    table = (DOCS / "mixing.md").read_text(encoding="utf-8").partition("| part | needs |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert len(names) > 10
    for name in names:
        builds = [parts[name] for parts in map(registry.parts, registry.slots()) if name in parts]
        assert any(docstrings.read_docstring(build.__doc__).needs for build in builds), name


def test_a_page_tells_signature_ranges_defaults_and_shapes(pages):
    page = pages["parts/term/side_directed_gaussian.md"]
    assert 'decoder.cross_attention.terms = [..., "side_directed_gaussian"]' in page
    assert "SideDirectedGaussianTerm(width, heads, scaled=True, extent='padded')" in page
    assert '| `extent` | "padded" or "image" | <code>"padded"</code> | what points and sides are shares of' in page
    assert "-w<sup>2</sup> (cell - centre)<sup>2</sup> / 8" in page
    assert "[Memory](../../parts/structures.md#memory)" in page
    assert r"Query features \[B, H, N, F\]." in page  # of the base class
    noise = "| `noise.box` | a number, at least 0 | <code>1.0</code> | how far boxes are moved"
    assert noise in pages["parts/block/contrastive.md"]  # the part's own default, not the table's
    assert "<code>contiguous</code> numbers the categories" in pages["parts/data/voc.md"]  # "as for coco", told in full
    options = "| `learning_rate` | a number, greater than 0, at most 1000 | <code>0.0001</code> |"
    assert options in pages["reference/recipe.md"]


def test_a_docstring_is_taken_apart(docstrings):
    doc = docstrings.read_docstring(
        """What it does
        in short.

        A formula.

        Needs a friend.

        Args:
            width: D.
            first, second: two of a kind, told
                in two lines.

        More.

        Raises:
            UserError: it is alone.
        """
    )
    assert (doc.summary, doc.body, doc.needs) == (
        "What it does in short.",
        ("A formula.", "More."),
        ("Needs a friend.",),
    )
    told = "two of a kind, told in two lines."
    assert doc.options == {"width": "D.", "first": told, "second": told}
    assert doc.raised == {"UserError": "it is alone."}


def test_plain_text_is_shown_unchanged(docstrings):
    markdown = pytest.importorskip("markdown").markdown
    text = "a_b * c * d_e [B, N] <T> | `x|*y*` {#z}"
    shown = markdown(docstrings.markdown(text))
    assert re.sub(r"</?(?:p|code)>", "", shown) == "a_b * c * d_e [B, N] &lt;T&gt; &#124; x&#124;&#42;y&#42; {#z}"


def test_every_table_of_results_and_every_script_is_told_with_its_command():
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    for path in ROOT.glob("benchmarks/results/*.md"):
        [row] = [line for line in text.splitlines() if f"(../benchmarks/results/{path.name})" in line]
        assert re.search("`(?:detrkit compare|python (?:benchmarks/|-m tests))|the same", row), path.name
    scripts = {
        f"benchmarks/{path.name}" for path in ROOT.glob("benchmarks/*.py") if "__main__" in path.read_text("utf-8")
    }
    assert set(re.findall(r"python (benchmarks/\w+\.py)", text)) == scripts


class Links(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") != "canonical" and given.get("href"):
            self.loaded.append(given["href"])


@pytest.mark.slow  # reads all recipes, and renders some hundred and fifty pages
def test_the_site_is_built_without_warnings_and_reads_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    assert len(pages) > len(own_parts())
    pages.pop(tmp_path / "404.html")  # its addresses begin at the root of wherever it is put
    seen = set()
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert target not in page.loaded, f"{path.name} loads {target}"
                continue
            if (path.parent, target) in seen and parts.path:
                continue
            seen.add((path.parent, target))
            found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert found.is_file(), f"{path.relative_to(tmp_path)}: {target}"
            if parts.fragment and found in pages:
                assert unquote(parts.fragment) in pages[found].ids | {""}, f"{path.relative_to(tmp_path)}: {target}"
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
    assert (tmp_path / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")


def test_the_hook_knows_what_mkdocs_yml_names(site):
    said = config()
    assert said["hooks"] == ["docs/build_site.py"]
    assert all((DOCS / name).is_file() for name in [*said["extra_css"], *said["extra"]["polyfills"]])
    for event in ("on_config", "on_files", "on_page_markdown", "on_post_build"):
        assert inspect.isfunction(getattr(site, event))
