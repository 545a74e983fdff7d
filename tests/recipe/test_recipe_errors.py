"""Each kind of mistake is named with its file, line and key, what is accepted and the nearest name; all at once."""

from __future__ import annotations

import pickle
import sys

import pytest

from detrkit.errors import UserError
from detrkit.recipe import RecipeError, load_recipe, registry
from detrkit.recipe.problems import dotted

from .conftest import problems_of


@pytest.fixture
def mistake(base, write):
    """The one problem of a recipe that extends the base, its own text beginning on line 2."""

    def find(text: str):
        path = write("mine.toml", f'extends = "base"\n{text}\n')
        problems = problems_of(path)
        assert len(problems) == 1, problems
        assert problems[0].file == str(path)
        return problems[0]

    return find


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("[trian]\nepochs = 3", 2, "trian", ['did you mean "train"']),
        ("epochs = 3", 2, "epochs", ['no such section; did you mean "train.epochs"?']),
        ("[zzz]", 2, "zzz", ["no such section", '"encoder", "decoder", "losses" or "train"']),
        ("[train]\n\nepoch = 3", 4, "train.epoch", ['did you mean "epochs"']),
        ("[encoder]\nzzz = 1", 3, "encoder.zzz", ['encoder "plain"', '"activation", "dropout", "layers" or "type"']),
        ("[encoder]\nwidth = 1", 3, "encoder.width", ["set by the model"]),
        ("[train]\nepochs = '3'", 3, "train.epochs", ['is "3"', "an integer, at least 1"]),
        ("[train]\nepochs = true", 3, "train.epochs", ["is true", "an integer"]),
        ("[train]\nepochs = 3.5", 3, "train.epochs", ["is 3.5"]),
        ("[train]\nrate = 0", 3, "train.rate", ["is 0", "a number, greater than 0"]),
        ("[train]\nrate = nan", 3, "train.rate", ["is nan", "a number is finite"]),
        ("[train]\nrate = inf", 3, "train.rate", ["is inf", "a number is finite"]),
        ("[train]\nepochs = 9223372036854775808", 3, "train.epochs", ["an integer has up to 64 bits"]),
        ("[train]\ndrops = [1, -inf]", 3, "train.drops", ["[1, -inf]", "a number is finite"]),
        ("[encoder]\ndropout = 1.0", 3, "encoder.dropout", ["is 1.0", "at least 0, less than 1"]),
        ("[encoder]\nactivation = 'rely'", 3, "encoder.activation", ['"relu" or "gelu"', 'did you mean "relu"']),
        ("[train]\ndrops = [1, 'x']", 3, "train.drops", ['[1, "x"]', "a list", "an integer"]),
        ("[train]\ndrops = 1", 3, "train.drops", ["is 1", "a list"]),
        ("[train]\nstart = 1", 3, "train.start", ['a string or "none"']),
        ("train = 3", 2, "train", ["is 3", "a table"]),
        ("[train]\nwarmup.stps = 3", 3, "train.warmup.stps", ['did you mean "steps"']),
        ("[train]\nwarmup = 3", 3, "train.warmup", ["is 3", "a table"]),
        ("[train]\ndrops = [70]", 2, "train", ["drops (70,) do not lie within 50 epochs"]),
        ("[encoder]\ntype = 'plane'", 3, "encoder.type", ['"deformable" or "plain"', 'did you mean "plain"']),
        ("encoder = 'plane'", 2, "encoder", ['there is no encoder "plane"', 'did you mean "plain"']),
        ("encoder = 3", 2, "encoder", ["is 3", '"plain" or "deformable"']),
        ("encoder = { type = 3 }", 2, "encoder.type", ["there is no encoder 3"]),
        ("[encoder]\ntype = 'deformable'", 2, "encoder.points", ["is missing", "an integer, at least 1"]),
        ("decoder.attention.terms = 'content'", 2, "decoder.attention.terms", ['did you mean ["content"]?']),
        ("decoder.attention.terms = 'both'", 2, "decoder.attention.terms", ['a list of parts (term): "content" or']),
        ("decoder.attention.terms = [\n'content',\n'gaus']", 4, "decoder.attention.terms.1", ['"gauss"']),
        ("decoder.attention.terms = [\n{ scale = 1 }]", 3, "decoder.attention.terms.0.type", ["is missing"]),
        (
            "decoder.attention.terms = [\n'content',\n{ type = 'gauss', scal = 1 }]",
            4,
            "decoder.attention.terms.1.scal",
            ['did you mean "scale"'],
        ),
        ("decoder.norm = 'lair'", 2, "decoder.norm", ['"layer" or "none"']),
        ("decoder.norm = { type = 'none', eps = 1.0 }", 2, "decoder.norm.eps", ["belongs to no part"]),
        ("losses = 'class'", 2, "losses.type", ["a table of parts by name, such as losses.box = {}"]),
        ("losses = []", 2, "losses", ["a table of parts by name", 'accepted: "box" or "class"']),
        ("losses.clas = 'none'", 2, "losses.clas", ['there are "class", "box"; did you mean "class"?']),
        ("losses.mine.type = 'none'", 2, "losses.mine", ['is "none", but no loss here has that name']),
        ("[losses.clas]\nweight = 1", 2, "losses.clas", ['"box", "class" or "none"', 'did you mean "class"']),
        ("losses.mine.type = 'clas'", 2, "losses.mine.type", ['did you mean "class"']),
        ("title = 3", 2, "title", ["is 3", "a string"]),
        ("reproduces = 'row'", 2, "reproduces", ["a table"]),
        (
            "imports = ['no_such_module_at_all']",
            2,
            "imports",
            ["finds no module no_such_module_at_all; install it, or give a .py file"],
        ),
        ("imports = 'x'", 2, "imports", ["a list of module names"]),
        ("imports = ['../x']", 2, "imports", ['"../x" is no name of a module, and no .py file']),
    ],
)
def test_a_mistake_is_named(mistake, text, line, key, words):
    problem = mistake(text)
    assert (problem.line, problem.key) == (line, key)
    for word in words:
        assert word in problem.message
    assert str(problem).startswith(f"{problem.file}:{line}: {key}: ")


def test_all_mistakes_are_told_at_once_in_the_order_of_lines(base, write):
    path = write(
        "mine.toml",
        'extends = ["base", "bas"]\n[encoder]\nlayers = 0\nlayer = 3\n[train]\nepochs = 0\nrate = "x"\n[trian]\n',
    )
    problems = problems_of(path, ["train.epoch=3", "nonsense", "losses.box.weight=[", "extends=other"])
    of_file = [problem for problem in problems if problem.file == str(path)]
    assert [(p.line, p.key) for p in of_file] == [
        (1, "extends"),
        (3, "encoder.layers"),
        (4, "encoder.layer"),
        (6, "train.epochs"),
        (7, "train.rate"),
        (8, "trian"),
    ]
    assert {p.key for p in problems if p.file == "command line"} == {
        "train.epoch",
        "nonsense",
        "losses.box.weight",
        "extends",
    }


def test_the_error_is_one_for_the_command_line(base):
    with pytest.raises(
        UserError, match=r"2 mistakes in recipe .*base\.toml:\n.*train.epochs.*\n.*train.rate"
    ) as caught:
        load_recipe(base, ["train.epochs=0", "train.rate=-1"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)


@pytest.mark.parametrize(
    ("text", "line"),
    [("[train]\nepochs = \n", 2), ("[train]\nepochs = 1\nepochs = 2\n", 3), ('a = 1\nb = """open\n', 2)],
)
def test_a_file_that_is_not_toml_is_named_with_its_line(toys, write, text, line):
    path = write("broken.toml", text)
    [problem] = problems_of(path)
    assert (problem.file, problem.line) == (str(path), line)
    assert "is not TOML" in problem.message


@pytest.mark.parametrize("levels", [40, 300, 5000])
@pytest.mark.parametrize("of", ["lists", "tables", "keys", "headers"])
def test_what_is_nested_too_deeply_is_refused(base, write, levels, of):
    """Such a recipe could be read, and not be written into its run."""
    keys = "epochs." * levels + "epochs"
    text = {
        "lists": f'extends = "base"\nreproduces.epochs = {"[" * levels}{"]" * levels}\n',
        "tables": f'extends = "base"\nreproduces.epochs = {"{ a = " * levels}1{" }" * levels}\n',
        "keys": f'extends = "base"\nreproduces.{keys} = 1\n',
        "headers": f'extends = "base"\n[reproduces.{keys}]\n',
    }[of]
    [problem] = problems_of(write("mine.toml", text))
    assert "nested too deeply" in problem.message
    over = {
        "lists": f"reproduces.x={'[' * levels}{']' * levels}",
        "tables": f"reproduces.x={'{ a = ' * levels}1{' }' * levels}",
    }
    said = over.get(of, f"reproduces.{keys}=1")
    with pytest.raises(RecipeError, match=r"nested too deeply|should be written as"):
        load_recipe(write("plain.toml", 'extends = "base"\n'), [said])


def test_a_folder_of_recipes_is_no_recipe(base):
    with pytest.raises(UserError, match=r"is a folder without a recipe\.toml; name a \.toml file in it"):
        load_recipe(str(base.parent))


def test_a_file_that_is_not_text_is_named(toys, tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"a = '\xff\xfe'")
    [problem] = problems_of(path)
    assert "is not UTF-8" in problem.message


def test_a_module_that_fails_is_named_with_its_error(base, write):
    write("my_broken_part.py", "raise RuntimeError('not today')\n")
    [problem] = problems_of(write("mine.toml", 'extends = "base"\nimports = ["my_broken_part"]\n'))
    assert (problem.line, problem.key) == (2, "imports")
    assert "RuntimeError: not today" in problem.message


@pytest.mark.parametrize(
    ("constructor", "words"),
    [
        (
            "def __init__(self, *, power): pass",
            'parameter "power" of .*Mine needs a type annotation; .* without: "width"',
        ),
        ("def __init__(self, **options): pass", 'parameter "options" of .*Mine cannot be given by name'),
    ],
)
def test_a_constructor_that_a_recipe_cannot_fill_is_named(base, write, constructor, words, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = f"from detrkit.recipe import register\n@register('norm', 'odd')\nclass Mine:\n    {constructor}\n"
    write("my_odd_part.py", code)
    with pytest.raises(UserError, match=words):
        load_recipe(write("mine.toml", 'extends = "base"\nimports = ["my_odd_part.py"]\ndecoder.norm.type = "odd"\n'))
    sys.modules.pop("my_odd_part", None)


def test_a_part_that_cannot_be_filled_does_not_hide_the_mistakes_of_others(monkeypatch):
    """An installed package's is known to everybody: a misspelt option of another part was answered by its fault."""

    def odd(**options):
        raise AssertionError("nobody names it")

    registry.load_registered_parts()
    for slot in ("cost", "detector", "backbone"):
        monkeypatch.setitem(registry._current.parts, slot, {**registry.parts(slot), "odd": odd})
    for override, words in (
        ("matcher.costs.box.wieght=3", 'no such option of cost "l1"; did you mean "weight"'),
        ("head.width=3", "detector.width sets it for all parts"),
        ("levels=3", 'did you mean "backbone.levels"'),
    ):
        [problem] = problems_of("quickstart", [override])
        assert words in problem.message
    with pytest.raises(UserError, match=r'parameter "options" of .*odd cannot be given by name'):
        load_recipe("quickstart", ["matcher.costs.odd={}"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("class Mine(Cots): pass", r"failed at line 3: NameError: name 'Cots' is not defined"),
        (
            "@register('norms', 'odd')\nclass Mine: pass",
            r'failed at line 3: .*there is no slot "norms"; did you mean "norm"\?',
        ),
        ("class Mine(: pass", r"failed: SyntaxError: .*line 3"),
    ],
)
def test_where_an_import_fails_is_told(base, write, code, words, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    write("my_failing_part.py", f"from detrkit.recipe import register\n\n{code}\n")
    with pytest.raises(UserError, match=words):
        load_recipe(write("mine.toml", 'extends = "base"\nimports = ["my_failing_part.py"]\n'))


def test_mistakes_laid_over_a_run_are_told_of_its_folder(base, monkeypatch):
    run = base.parent / "runs" / "x"
    run.mkdir(parents=True)
    base.rename(run / "recipe.toml")
    monkeypatch.chdir(base.parent)
    for named in ("runs/x", run / "recipe.toml"):
        with pytest.raises(UserError, match=r"one mistake in recipe runs/x/recipe\.toml:\n"):
            load_recipe(named, ["train.epochs=0"])


def test_an_option_of_another_type_names_that_type():
    with pytest.raises(
        UserError,
        match=r'no such option of data "shapes"; .*"val_images"; data "auto", "coco", "labelme", "voc" or "yolo"',
    ):
        load_recipe("quickstart", ["data.root=/x"])


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("epochs", '"train.epochs"'),
        ("batch_size", '"train.batch_size" or "evaluate.batch_size"'),
        ("root", '"data.root"'),
        ("classes", '"detector.classes" or "data.classes"'),
        ("extend", '"extends"'),
    ],
)
def test_an_option_without_its_section_is_given_one(key, meant):
    [problem] = problems_of("quickstart", [f"{key}=3"])
    assert problem.message == f"there is no such section; did you mean {meant}?"


def test_words_of_a_list_want_no_quotes_as_a_shell_takes_them():
    for given in ('["tensorboard","wandb"]', "[tensorboard,wandb]", "[ tensorboard, wandb, ]"):
        assert load_recipe("quickstart", [f"train.loggers={given}"]).get("train.loggers") == ("tensorboard", "wandb")
    [problem] = problems_of("quickstart", ["train.loggers=[tensorboard,wandbb]"])
    assert 'is ["tensorboard", "wandbb"], should be a list' in problem.message
    assert problems_of("quickstart", ["train.drop_epochs=[1,[2"])[0].message.startswith("[1,[2 is not a TOML value")


def numbers_of(name):
    def is_number(value):
        return type(value) in (int, float) or (isinstance(value, list) and any(map(is_number, value)))

    return [dotted(path) for path, value, _ in load_recipe(name).rows() if is_number(value)]


@pytest.mark.parametrize("name", ["quickstart", "dino_ss_r50_12ep", "faster_rcnn_r50_108ep"])
@pytest.mark.parametrize("value", ["inf", "nan", str(2**63), str(10**400)])
def test_every_number_of_a_recipe_is_finite(name, value):
    keys = [key for key in numbers_of(name) if not key.startswith("reproduces")]
    assert len(keys) > 20
    found = {problem.key for problem in problems_of(name, [f"{key}={value}" for key in keys])}
    # Options of a list are refused as a whole.
    assert [key for key in keys if key not in found] == []


def test_what_a_none_leaves_out_is_told(base):
    recipe = load_recipe(base, ["losses.box=none"])
    assert recipe.left_out() == ["losses.box (command line)"]
    assert load_recipe(base).left_out() == []


def test_a_none_has_to_leave_something_out(base, write):
    [problem] = problems_of(base, ["losses.l1=none"])  # the part's type elsewhere, or a slip of the pen
    assert (problem.file, problem.key) == ("command line", "losses.l1")
    with pytest.raises(RecipeError, match=r'losses.l1: is "none", but no loss here has that name'):
        load_recipe(base).with_values({"losses.l1": None})
    # A run's recipe has no base that would hold what was left out, and may be gone over again.
    merged = write("merged.toml", load_recipe(base, ["losses.box=none"]).to_toml())
    assert list(load_recipe(merged, ["losses.box=none"]).section("losses")) == ["class"]


def test_rules_of_parameters_are_named_parts_within_a_table_of_options():
    recipe = load_recipe("rt_detr_deim_r50_60ep", ["train.parameters.backbone_norms.rate_factor=5"])
    assert recipe.get("train.parameters.backbone_norms.type") == "norms"
    assert recipe.get("train.parameters.backbone_norms.rate_factor") == 5
    without = load_recipe("rt_detr_deim_r50_60ep", ["train.parameters.norms=none"])
    assert list(without.section("train").parameters) == ["backbone_norms"]
    assert without.left_out() == ["train.parameters.norms (command line)"]
    [problem] = problems_of("rt_detr_deim_r50_60ep", ["train.parameters.mine.decay_factor=0"])
    assert problem.key == "train.parameters.mine"
    assert 'there is no parameter_rule "mine"; accepted: "all", "biases", "none" or "norms"' in problem.message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.loggers=wandb", '; did you mean ["wandb"]?'),
        ("train.freeze=backbone", '; did you mean ["backbone"]?'),
        ("train.drop_epochs=3", "; did you mean [3]?"),
        ("train.loggers=wandbb", '; did you mean "wandb"?'),
        ("train.drop_epochs=0", "at most 1000000)"),
    ],
)
def test_one_value_in_the_place_of_a_list_is_told_as_a_list(override, said):
    [problem] = problems_of("quickstart", [override])
    assert problem.message.endswith(said)


@pytest.mark.parametrize("value", ["[[backbone]]", "{type=norms}", "[3"])
def test_a_value_whose_quotes_a_shell_took_is_one_mistake_that_says_so(value):
    [problem] = problems_of("quickstart", [f"train.freeze={value}"])
    assert problem.key == "train.freeze"
    assert problem.message.startswith(f"{value} is not a TOML value: ")
    assert "a shell keeps those within others: 'key=[\"text\"]'" in problem.message
    assert "column" not in problem.message  # of what the person did not type


def test_one_override_in_the_place_of_a_list_is_one_mistake():
    with pytest.raises(RecipeError, match="is one text, should be a list") as raised:
        load_recipe("quickstart", "train.epochs=2")
    assert str(raised.value).splitlines()[1:] == [
        "  command line: train.epochs=2: is one text, should be a list: ['train.epochs=2']"
    ]
