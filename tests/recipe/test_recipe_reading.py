"""Reading, inheritance, overrides and sources, over toy parts."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from detrkit.errors import UserError
from detrkit.recipe import Factory, load_recipe, parse_recipe
from detrkit.recipe.lines import key_lines


def test_built_parts_get_their_options_and_the_offered_values_that_they_name(base):
    recipe = load_recipe(base)
    decoder = recipe.section("decoder")(width=8)
    assert recipe.section("encoder")(width=8).said == {
        "width": 8,
        "layers": 6,
        "dropout": 0.0,
        "activation": "relu",
    }
    first, second = decoder.said["attention"]
    assert [term.said for term in first.said["terms"]] == [{"width": 8, "layer": 0}, {"width": 8, "scale": 2.0}]
    assert second.said["terms"][0].said["layer"] == 1
    assert decoder.said["norm"].said == {"width": 8, "eps": 1e-5}


def test_a_factory_refuses_what_its_slot_does_not_offer_and_asks_for_what_its_part_needs(base):
    encoder = load_recipe(base).section("encoder")
    with pytest.raises(TypeError, match="does not declare the offered height"):
        encoder(width=8, height=3)
    with pytest.raises(TypeError, match='encoder "plain" needs width'):
        encoder()


def test_sections_are_options_factories_and_named_factories(base):
    recipe = load_recipe(base)
    assert recipe.section("train").drops == (40,)
    assert recipe.section("train").warmup.steps == 0
    assert recipe.section("encoder").name == "plain"
    assert list(recipe.section("losses")) == ["class", "box"]
    assert all(isinstance(loss, Factory) for loss in recipe.section("losses").values())
    with pytest.raises(KeyError, match='did you mean "train"'):
        recipe.section("trian")


def test_get_reaches_defaults_types_and_list_items(base):
    recipe = load_recipe(base)
    assert recipe.get("train.epochs") == 50
    assert recipe.get("train.warmup.factor") == 0.1
    assert recipe.get("encoder.type") == "plain"
    assert recipe.get("decoder.attention.terms.1.scale") == 2.0
    assert recipe.get("title") == "Base"
    assert recipe.get("train.nothing", 7) == 7
    with pytest.raises(KeyError, match=r"train\.nothing"):
        recipe.get("train.nothing")


def test_every_value_knows_where_it_was_said(base, write, monkeypatch):
    monkeypatch.chdir(base.parent)
    child = write("sub/child.toml", 'extends = "../base"\n\n[train]\nepochs = 9\ndrops = [\n  3,\n  4,\n]\n')
    recipe = load_recipe(child, ["train.rate=0.5"])
    assert recipe.source("train.epochs") == "sub/child.toml:4"
    assert recipe.source("train.drops") == "sub/child.toml:5"
    assert recipe.source("train.drops.1") == "sub/child.toml:7"
    assert recipe.source("train.rate") == "command line"
    assert recipe.source("train.warmup.steps") == "default"
    assert recipe.source("encoder.type") == "base.toml:2"
    assert recipe.source("encoder.layers") == "default"
    assert recipe.source("decoder.attention.terms.1.scale") == "base.toml:10"
    with pytest.raises(KeyError):
        recipe.source("train.nothing")
    changed = recipe.with_values({"train.epochs": 12}, source="data set")
    assert changed.source("train.epochs") == "data set"
    assert recipe.get("train.epochs") == 9


def test_rows_cover_every_value_once(base):
    recipe = load_recipe(base)
    rows = {path: (value, str(source)) for path, value, source in recipe.rows()}
    assert rows["train", "epochs"] == (50, f"{base}:18")
    assert rows["train", "start"] == ("none", "default")
    assert len(rows) == len(list(recipe.rows()))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_are_found_in_every_form_that_toml_has(newline):
    text = newline.join(
        [
            "# a comment = 1",
            'title = "with # and = and ]"',
            "a.b . 'c d' = [ 1, # one",
            '  { type = "p", "q\\u0041" = { z = 1 } },',
            '  """two',
            '  lines ] "" """, \'x]\',',
            "]",
            "[enc] # table",
            "d = 1979-05-27 07:32:00",
            's = """',
            ' \\""" = 3""""',
            "[[rows]]",
            "x = -1.5e3",
            "[[rows]]",
            "x = true",
            "[rows.sub]",
            "y = '''it's'''",
            "[ enc . deep ]",
            "z = {}",
            "last = []",
        ]
    )
    text = text.replace("\r\n", "\n")  # as the reader hands it over
    lines = key_lines(text)
    assert lines[("title",)] == 2
    assert lines[("a", "b", "c d")] == 3
    assert lines[("a", "b", "c d", 1, "qA", "z")] == 4
    assert lines[("a", "b", "c d", 2)] == 5
    assert lines[("a", "b", "c d", 3)] == 6
    assert lines[("enc",)] == 8
    assert lines[("enc", "d")] == 9
    assert lines[("enc", "s")] == 10
    assert lines[("rows", 0, "x")] == 13
    assert lines[("rows", 1, "x")] == 15
    assert lines[("rows", 1, "sub", "y")] == 17
    assert lines[("enc", "deep", "last")] == 20
    assert _paths(tomllib.loads(text)) <= set(lines)


def _paths(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path} - {()} | {p for key, item in inner for p in _paths(item, (*path, key))}


def test_a_changed_type_drops_the_keys_of_the_old_type(base, write):
    longer = write("longer.toml", 'extends = "base"\n[encoder]\nlayers = 3\n')
    assert load_recipe(longer).get("encoder.layers") == 3
    other = write("other.toml", 'extends = "longer"\nencoder = { type = "deformable", points = 4 }\n')
    assert load_recipe(other).values["encoder"] == {"type": "deformable", "points": 4}
    assert load_recipe(longer, ["encoder=plain"]).get("encoder.layers") == 3
    assert load_recipe(longer, ["encoder=deformable", "encoder.points=2"]).get("encoder.points") == 2
    assert load_recipe(longer, ["encoder.points=2", "encoder.type=deformable"]).get("encoder.points") == 2


def test_naming_the_default_type_drops_nothing(base, write):
    path = write("eps.toml", 'extends = "base"\n[decoder.norm]\neps = 0.5\n')
    assert load_recipe(path, ["decoder.norm.type=layer"]).get("decoder.norm.eps") == 0.5
    assert load_recipe(path, ["losses.class.type=class"]).get("losses.class.weight") == 1.0


def test_a_type_said_after_the_options_joins_them(base, write):
    write("open.toml", 'extends = "base"\n[losses.extra]\nweight = 0.5\n')
    recipe = load_recipe(write("closed.toml", 'extends = "open"\n[losses]\nextra = "box"\n'))
    assert recipe.get("losses.extra.type") == "box"
    write("template.toml", "[encoder]\nlayers = 3\n")
    recipe = load_recipe(write("filled.toml", 'extends = ["template", "base"]\nencoder = "plain"\n'))
    assert recipe.get("encoder.layers") == 3


def test_none_takes_a_part_away(base):
    assert load_recipe(base, ["decoder.norm=none"]).section("decoder").parts["norm"] is None
    assert list(load_recipe(base, ["losses.class=none"]).section("losses")) == ["box"]
    assert list(load_recipe(base, ['losses.class.type="none"']).section("losses")) == ["box"]
    assert load_recipe(base, ["losses.class.alpha=none"]).get("losses.class.alpha") is None


def test_a_later_base_lies_over_an_earlier_one_and_the_file_over_both(base, write):
    write("long.toml", "[train]\nepochs = 500\nrate = 0.5\n")
    path = write("child.toml", 'extends = ["base", "long"]\ntrain.epochs = 70\n')
    recipe = load_recipe(path)
    assert recipe.section("train").rate == 0.5
    assert recipe.section("train").epochs == 70
    assert recipe.section("train").drops == (40,)


def test_what_a_base_says_of_itself_is_not_said_of_its_children(base, write):
    write("published.toml", 'extends = "base"\ntitle = "Published"\nreproduces = { table = "1", AP = 43.1 }\n')
    path = write("mine.toml", 'extends = "published"\n[train]\nepochs = 60\n')
    assert load_recipe(base.parent / "published.toml").reproduces == {"table": "1", "AP": 43.1}
    mine = load_recipe(path)
    assert (mine.name, mine.title, mine.reproduces) == ("mine", "", {})


def test_what_two_bases_stand_on_undoes_nothing_of_the_first(base, write):
    """Laid again below the second, it took the 900 queries of DINO's 4 levels from Align-DETR's recipe."""
    write("shared.toml", 'extends = "base"\ntrain.rate = 0.25\ntrain.epochs = 30\n')
    write("a.toml", 'extends = "shared"\ntrain.rate = 0.5\n')
    write("b.toml", 'extends = "shared"\ntrain.epochs = 60\n')
    recipe = load_recipe(write("both.toml", 'extends = ["a", "b"]\n'))
    assert (recipe.get("train.rate"), recipe.get("train.epochs")) == (0.5, 60)


def test_what_a_second_base_says_over_one_of_its_own_stays(base, write):
    write("small.toml", "train.rate = 0.25\n")
    write("large.toml", 'extends = "base"\ntrain.rate = 0.5\n')
    write("mine.toml", 'extends = ["large", "small"]\n')
    recipe = load_recipe(write("both.toml", 'extends = ["small", "mine"]\n'))
    assert recipe.get("train.rate") == 0.25


@pytest.mark.parametrize("name", ["align_detr_4scale_r50_12ep", "stable_dino_4scale_r50_12ep"])
def test_recipes_of_four_levels_have_900_queries(name):
    assert load_recipe(name).get("queries.count") == 900


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=60", "train.epochs", 60),
        ("train.rate=1e-3", "train.rate", 1e-3),
        ("train.rate = 2", "train.rate", 2.0),
        ("train.start=runs/x=1.toml", "train.start", "runs/x=1.toml"),
        ('train.start="quoted"', "train.start", "quoted"),
        ("train.start=~/a b", "train.start", "~/a b"),
        ("train.drops=[1, 2]", "train.drops", (1, 2)),
        ("train.warmup={ steps = 3 }", "train.warmup.steps", 3),
        ('losses."box".weight=3', "losses.box.weight", 3.0),
        ("title=Other", "title", "Other"),
    ],
)
def test_overrides_are_toml_or_a_plain_string(base, override, key, value):
    recipe = load_recipe(base, [override])
    assert recipe.get(key) == value
    assert recipe.source(key) == "command line"


@pytest.mark.parametrize("form", ["my_toy_part", "my_toy_part.py"])
def test_a_recipe_brings_its_own_parts(base, write, form, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("my_toy_part", None)
    write(
        "my_toy_part.py",
        "from detrkit.recipe import register\n"
        "@register('norm', 'mine')\n"
        "class Mine:\n"
        "    def __init__(self, *, width: int, power: int = 2): self.power = power\n",
    )
    path = write("mine.toml", f'extends = "base"\nimports = ["{form}"]\n[decoder.norm]\ntype = "mine"\npower = 3\n')
    child = write("below/child.toml", 'extends = "../mine"\n')
    assert load_recipe(path).section("decoder").parts["norm"](width=8).power == 3
    with pytest.raises(UserError, match=r"(?s)my_toy_part.*trust"):  # a base in another folder may be anybody's
        load_recipe(child)
    recipe = load_recipe(child, trust=True)
    assert recipe.get("decoder.norm.type") == "mine"
    assert recipe.sources["imports",].line == 2
    # The written recipe still finds the module from another folder.
    assert load_recipe(write("elsewhere/recipe.toml", recipe.to_toml())).get("decoder.norm.power") == 3
    sys.modules.pop("my_toy_part", None)


def test_a_recipe_is_found_by_path_without_its_ending_and_by_its_run_folder(base, write, monkeypatch):
    monkeypatch.chdir(base.parent)
    write("runs/v1.5/recipe.toml", 'extends = "../../base.toml"\n')
    write("v1.5.toml", 'extends = "base"\n')
    assert load_recipe("base").get("train.epochs") == 50
    assert load_recipe("runs/v1.5").get("train.epochs") == 50
    assert load_recipe("v1.5").name == "v1.5"


@pytest.mark.parametrize("given", ["mine", "mine/recipe.toml", "mine/recipe", "../mine", "."])
def test_a_project_s_recipe_and_a_run_s_are_called_by_their_folder(base, write, monkeypatch, given):
    write("mine/recipe.toml", 'extends = "../base.toml"\n')
    monkeypatch.chdir(base.parent / "mine" if given.startswith(".") else base.parent)
    assert load_recipe(given).name == "mine"
    write("mine/categories.json", "[]")
    assert load_recipe(given).name == "mine"
    assert parse_recipe(base.read_text(), Path("best/weights.safetensors"), run=base.parent / "mine").name == "mine"


def test_recipes_do_not_share_their_defaults(base):
    first, second = load_recipe(base), load_recipe(base)
    assert first.section("train") == second.section("train")
    assert first.section("train").warmup is not second.section("train").warmup


def test_with_values_takes_python_values_and_checks_them(base):
    recipe = load_recipe(base)
    changed = recipe.with_values(
        {"train.start": None, "train.drops": (1, 2), "encoder": {"type": "plain", "layers": 2}}
    )
    assert changed.get("train.start") is None
    assert changed.get("train.drops") == (1, 2)
    assert changed.get("encoder.layers") == 2
    assert recipe.get("encoder.layers") == 6


def test_the_mark_of_windows_before_a_recipe_is_none_of_it(base, write):
    plain = write("plain.toml", 'extends = "base"\n')
    marked = write("marked.toml", "")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert load_recipe(marked).full_values() == load_recipe(plain).full_values()


def test_a_base_may_lie_in_the_home_folder(base, write, monkeypatch):
    monkeypatch.setenv("HOME", str(base.parent))
    mine = write("sub/mine.toml", 'extends = "~/base"\n')
    assert load_recipe(mine).get("train.epochs") == 50
