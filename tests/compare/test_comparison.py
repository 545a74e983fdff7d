"""Rows from recipes and runs, and what is worked out of them."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detrkit.compare.comparison import compare, find_row
from detrkit.compare.curves import mean_curve
from detrkit.compare.epochs_to import epochs_needed
from detrkit.compare.sheets import make_sheets
from detrkit.compare.targets import gather_rows, make_jobs, split_arguments
from detrkit.compare.timing import Timing
from detrkit.errors import UserError
from detrkit.recipe import load_recipe
from detrkit.recipe.library import find_recipe
from detrkit.recipe.trust import fingerprints
from detrkit.runs.history import differences, read_run

TABLE4 = [f"proxy/cpu/table4/{name}" for name in ("1_full", "4_no_peca_no_sdg", "7_dab_baseline")]


def rows_of(tmp_path, *targets, overrides=(), runs=None, warn=None):
    return gather_rows([str(t) for t in targets], overrides, runs=runs or tmp_path / "none", warn=warn)


def test_runs_of_one_recipe_are_one_row(tmp_path, make_run):
    first = make_run(tmp_path / "quickstart-seed0", "quickstart", {1: 10, 2: 20, 4: 30})
    second = make_run(tmp_path / "quickstart-seed1", "quickstart", {1: 12, 2: 26, 4: 34}, seed=1)
    other = make_run(tmp_path / "else", "quickstart_dab", {1: 5, 2: 15})
    result = compare(rows_of(tmp_path, second, other, first), baseline="else")
    assert [m.row.name for m in result.rows] == ["quickstart", "else"]
    quick, dab = result.rows
    assert [run.seed for run in quick.row.runs] == [0, 1]
    assert result.equal_epoch == 2
    assert quick.at["last"]["AP"].values == pytest.approx((30, 34))
    assert quick.at["last"]["AP"].deviation == pytest.approx(8**0.5)
    assert quick.at["equal"]["AP"].mean == pytest.approx(23)
    assert quick.at["equal"]["AP50"].mean == pytest.approx(34.5)
    assert quick.difference == pytest.approx({"last": 17, "best": 17, "equal": 8})
    assert dab.at["last"]["AP"].deviation is None


def test_a_copy_of_a_run_is_no_other_seed(tmp_path, make_run):
    runs = [("a-seed0", 20, 0), ("copy", 20, 0), ("a-seed1", 30, 1)]
    every = [make_run(tmp_path / name, "quickstart", {2: ap}, seed=seed) for name, ap, seed in runs]
    every += [make_run(tmp_path / f"b-seed{s}", "quickstart_dab", {2: ap}, seed=s) for s, ap in ((0, 10), (1, 11))]
    result = compare(rows_of(tmp_path, *every), baseline="b")
    row = result.rows[0]
    assert row.at["equal"]["AP"].values == pytest.approx((20, 30))
    assert row.difference["equal"] == pytest.approx(row.paired.differences["AP"].value)
    assert [one[1] for one in make_sheets(result, {}, {})[0].rows] == ["2", "2"]
    _, _, means, deviations = mean_curve(row.row.trained)
    assert (means[0], deviations[0]) == pytest.approx((25, 50**0.5))


def test_runs_of_code_that_has_changed_since_are_told(tmp_path, make_run, monkeypatch):
    """They counted as done and as the recipe's, whatever stands in its part by now. And what a recipe names that is
    named itself is named for its runs, too.
    """
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    code, recipe = tmp_path / "compared_part.py", tmp_path / "mine.toml"
    code.write_text("RADIUS = 1\n")
    recipe.write_text('extends = "quickstart"\nimports = ["compared_part.py"]\n')
    run = make_run(tmp_path / "mine-seed0", recipe, {1: 10})
    (run / "environment.json").write_text(json.dumps([{"imports": fingerprints([str(code)])}]))
    warnings: list[str] = []
    [row] = rows_of(tmp_path, recipe, runs=tmp_path, warn=warnings)
    assert (len(row.runs), warnings) == (1, [])
    code.write_text("RADIUS = 2\n")
    [row] = rows_of(tmp_path, recipe, runs=tmp_path, warn=warnings)
    assert len(row.runs) == 1
    assert warnings == [f"{run} was trained with another code of {code} than there is now"]
    with pytest.raises(UserError, match="code would be run that you did not name"):  # the run alone is anybody's
        rows_of(tmp_path, run)


def test_the_best_evaluation_brings_all_its_parts(tmp_path, make_run):
    run = make_run(tmp_path / "x", "quickstart", {1: 10, 2: 30, 3: 20})
    [row] = compare(rows_of(tmp_path, run)).rows
    assert row.at["best"]["APL"].mean == pytest.approx(36)
    assert row.at["last"]["APL"].mean == pytest.approx(24)


def test_a_recipe_finds_its_runs_and_names_those_of_another(tmp_path, make_run):
    make_run(tmp_path / "quickstart-seed3", "quickstart", {1: 10}, seed=3)
    make_run(tmp_path / "quickstart-seed4", "quickstart", {1: 10}, seed=4, overrides=["train.epochs=9"])
    make_run(tmp_path / "quickstart-seedless", "quickstart", {1: 10})
    warnings = []
    [row] = rows_of(tmp_path, "quickstart", runs=tmp_path, warn=warnings)
    assert [run.seed for run in row.runs] == [3]
    [warning] = warnings
    assert "quickstart-seed4" in warning
    assert "train.epochs is 9, not 4" in warning
    [row] = rows_of(tmp_path, "quickstart", overrides=["train.epochs=9"], runs=tmp_path)
    assert [run.seed for run in row.runs] == [4]


def test_a_folder_of_runs_stands_for_the_runs_in_it(tmp_path, make_run):
    runs = tmp_path / "runs"
    alone = make_run(runs / "quickstart", "quickstart", {1: 10}, seed=7)
    for seed in (0, 1):
        make_run(runs / "compare" / f"quickstart-seed{seed}", "quickstart", {1: 10}, seed=seed)
    make_run(runs / "compare" / "quickstart_dab-seed0", "quickstart_dab", {1: 10})
    (runs / "compare" / "failed-seed0").mkdir()
    every = rows_of(tmp_path, *sorted(runs.iterdir()))  # runs/*
    assert [(row.name, [run.seed for run in row.runs]) for row in every] == [
        ("quickstart", [0, 1, 7]),
        ("quickstart_dab", [0]),
    ]
    assert [[run.seed for run in row.runs] for row in rows_of(tmp_path, runs)] == [[7]]
    assert [run.path for run in rows_of(tmp_path, alone)[0].runs] == [alone]


def test_a_baseline_is_named_as_it_was_typed(tmp_path, make_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs/quickstart-seed1"), "quickstart", {1: 10}, seed=1)
    for name in ("mine", "other"):
        Path(f"{name}.toml").write_text(f'extends = "quickstart"\ntrain.epochs = {2 * len(name)}\n')
    shipped = str(find_recipe(TABLE4[2]))
    rows = rows_of(tmp_path, "./mine.toml", "other.toml", shipped, run)
    for name in ("runs/quickstart-seed1", "runs/quickstart-seed1/", str(run.resolve()), "quickstart"):
        assert find_row(rows, name) is rows[3]
    for name in ("mine.toml", "./mine.toml", "mine"):
        assert find_row(rows, name) is rows[0]
    for name in (shipped, TABLE4[2], "7_dab_baseline", "baseline", "7_dab_baseline.toml"):
        assert find_row(rows, name) is rows[2]


def test_the_end_of_a_baselines_name_is_taken_by_whole_parts_first(tmp_path, make_run):
    rows = [replace(rows_of(tmp_path, "quickstart")[0], name=name) for name in ("quickstart_dab", "a/dab", "the_dab")]
    assert find_row(rows, "dab").name == "a/dab"
    assert find_row(rows, "t_dab").name == "quickstart_dab"
    with pytest.raises(UserError, match=r"--baseline _dab fits 2 rows: quickstart_dab, the_dab$"):
        find_row(rows, "_dab")


def test_how_a_run_was_run_makes_no_other_recipe():
    asked = load_recipe("quickstart")
    same = ["train.workers=3", "train.device=cpu", "train.seed=7", "detector.classes=8", "train.loggers=[]"]
    same = load_recipe("quickstart", same)
    assert differences(asked, same) == []
    other = load_recipe("quickstart", ["train.learning_rate=0.5", "decoder.layers=2"])
    assert sorted(differences(asked, other)) == ["decoder.layers is 2, not 3", "train.learning_rate is 0.5, not 0.001"]


def test_an_empty_folder_among_runs_is_passed_over(tmp_path, make_run):
    run, empty, warnings = make_run(tmp_path / "x", "quickstart", {1: 10}), tmp_path / "killed", []
    empty.mkdir()
    (empty / ".lock").touch()
    assert [row.name for row in rows_of(tmp_path, empty, run, warn=warnings)] == ["x"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{empty} is passed over")
    with pytest.raises(UserError, match="killed is neither a run's folder"):
        rows_of(tmp_path, empty)


def test_two_ways_to_write_the_path_of_a_folder_make_no_other_recipe(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    asked, *same, other = (
        load_recipe("quickstart_coco", [f"data.root={root}"])
        for root in ("set", str(tmp_path / "set"), "~/set", "./other/../set/", "other")
    )
    assert [differences(asked, recipe) for recipe in same] == [[], [], []]
    assert differences(asked, other) == ['data.root is "other", not "set"']


def test_rank_correlation_with_the_published_order(tmp_path, make_run):
    for name, ap in zip(TABLE4, (30, 20, 10), strict=True):  # published: 36.2, 34.0, 32.3
        make_run(tmp_path / f"{name.replace('/', '-')}-seed0", name, {1: ap})
    result = compare(rows_of(tmp_path, *TABLE4, runs=tmp_path))
    assert (result.rank, result.rank_rows) == (1.0, 3)
    make_run(tmp_path / "more" / f"{TABLE4[0].replace('/', '-')}-seed0", TABLE4[0], {1: 5})
    for name, ap in zip(TABLE4[1:], (20, 10), strict=True):
        make_run(tmp_path / "more" / f"{name.replace('/', '-')}-seed0", name, {1: ap})
    assert compare(rows_of(tmp_path, *TABLE4, runs=tmp_path / "more")).rank == pytest.approx(-0.5)
    assert compare(rows_of(tmp_path, *TABLE4[:2], runs=tmp_path)).rank is None


def test_a_figure_that_was_published_for_other_epochs_or_data_is_told(tmp_path, make_run):
    def notes(*targets):
        accuracy = make_sheets(compare(rows_of(tmp_path, *targets, runs=tmp_path)), {}, {})[0]
        return [note for note in accuracy.notes if note.startswith("published:")]

    for name in TABLE4[:2]:  # published for 12 epochs, as a proxy trained for 4
        make_run(tmp_path / f"{name.replace('/', '-')}-seed0", name, {4: 20})
    assert notes(*TABLE4[:2]) == ['published: for 12 epochs on COCO val2017, here for 4 on the data "shapes".']
    begun = make_run(tmp_path / "begun", "ablations/table4/1_full", {3: 20})  # on its way to 12 epochs
    assert notes(begun) == []
    assert notes(begun, TABLE4[1]) == [
        'published: for 12 epochs on COCO val2017, here for 4 on the data "shapes", '
        "in proxy/cpu/table4/4_no_peca_no_sdg."
    ]
    changed = make_run(tmp_path / "changed", "sap_detr_r50_50ep", {10: 30}, overrides=["train.epochs=10"])
    assert notes(begun, changed) == ["published: for 50 epochs, here for 10, in changed."]
    assert notes(begun, TABLE4[2]) == []  # that one was not run
    shapes = make_run(tmp_path / "shapes", "sap_detr_r50_50ep", {50: 30}, overrides=["data.type=shapes"])
    assert notes(shapes) == ['published: on COCO val2017, here on the data "shapes".']


def test_epochs_to_an_ap_lie_on_lines_between_evaluations(tmp_path, make_run):
    run = read_run(make_run(tmp_path / "x", "quickstart", {1: 10, 3: 30, 4: 20}))
    assert epochs_needed(run, 20) == pytest.approx(2)
    assert epochs_needed(run, 5) == pytest.approx(0.5)
    assert epochs_needed(run, 30) == pytest.approx(3)
    assert epochs_needed(run, 31) is None
    began = make_run(tmp_path / "y", "quickstart", {1: 10, 2: 20}, overrides=["train.init_from=weights.safetensors"])
    assert epochs_needed(read_run(began), 5) == 1


def test_faster_is_the_ratio_of_epochs_and_never_where_a_seed_never_did(tmp_path, make_run):
    base = make_run(tmp_path / "base", "quickstart_dab", {2: 10, 4: 20})
    fast = make_run(tmp_path / "fast", "quickstart", {1: 10, 2: 20})
    result = compare(rows_of(tmp_path, base, fast), baseline="base", epochs_to=15)
    assert [m.reached.faster.value for m in result.rows] == pytest.approx([1, 2])
    assert [m.reached.faster.low for m in result.rows] == [None, None]
    late = make_run(tmp_path / "fast-2", "quickstart", {1: 1, 2: 2}, seed=1)
    row = compare(rows_of(tmp_path, base, fast, late), baseline="base", epochs_to=15).rows[1].reached
    assert row.epochs == (1.5, None)
    assert (row.mean, row.faster) == (None, None)


def test_epochs_of_a_copied_run_are_not_another_seed_s(tmp_path, make_run):
    """Two runs of seed 0 need 1 and 2 epochs, that of seed 1 needs 3."""
    folders = [
        make_run(tmp_path / name, "quickstart", {4: 15 / epochs * 4}, seed=seed)
        for name, epochs, seed in (("a", 1, 0), ("b", 2, 0), ("c", 3, 1))
    ]
    [row] = compare(rows_of(tmp_path, *folders), epochs_to=15).rows
    assert row.reached.epochs == pytest.approx((1.5, 3))
    assert row.reached.mean == pytest.approx(2.25)
    folders.append(make_run(tmp_path / "d", "quickstart", {4: 1}, seed=1))
    [row] = compare(rows_of(tmp_path, *folders), epochs_to=15).rows
    assert row.reached.epochs == (pytest.approx(1.5), None)


def test_faster_has_the_interval_of_its_pairs_of_seeds(tmp_path, make_run):
    """Seed 0 needs 3 and 1.5 epochs, seed 1 needs 3 and 1, seed 2 needs 2 and 1."""
    needed = [(3, 1.5), (3, 1), (2, 1)]
    runs = []
    for seed, (slow, fast) in enumerate(needed):
        for recipe, epochs in (("quickstart_dab", slow), ("quickstart", fast)):
            points = {4: 15 / epochs * 4}
            runs.append(make_run(tmp_path / f"{recipe}-seed{seed}", recipe, points, seed=seed))
    dab, sap = [m.reached for m in compare(rows_of(tmp_path, *runs), baseline="quickstart_dab", epochs_to=15).rows]
    assert sap.epochs == pytest.approx((1.5, 1, 1))
    ratios = np.log([2, 3, 2])
    half = 4.302653 * ratios.std(ddof=1) / 3**0.5  # t of two degrees of freedom
    middle = ratios.mean()
    assert (sap.faster.value, sap.faster.low, sap.faster.high) == pytest.approx(
        tuple(np.exp([middle, middle - half, middle + half])), rel=1e-5
    )
    assert (dab.faster.value, dab.faster.low) == (1, None)


def test_a_line_that_is_being_written_is_left_out_and_a_broken_one_is_named(tmp_path, make_run):
    run = make_run(tmp_path / "x", "quickstart", {1: 10})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluate", "st')
    assert [e.epoch for e in read_run(run).evaluations] == [1]
    (run / "metrics.jsonl").write_text("{nonsense\n" + json.dumps({"kind": "train"}) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: is not JSON"):
        read_run(run)


def test_what_cannot_be_compared_is_named(tmp_path, make_run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a run's folder"):
        rows_of(tmp_path, tmp_path / "empty")
    with pytest.raises(
        UserError, match=r'baseline quickstar is no row; did you mean "quickstart"\?; the rows are: quick'
    ):
        compare(rows_of(tmp_path, "quickstart"), baseline="quickstar")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('extends = "quickstart"\nreproduces = { table = "2", method = "SAP" }\n')
    with pytest.raises(UserError, match=r"wrong\.toml: reproduces .* is no published row"):
        rows_of(tmp_path, wrong)
    (tmp_path / "a").mkdir()
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "same.toml").write_text('extends = "quickstart"\n')
    with pytest.raises(UserError, match="two of the recipes are called same"):
        rows_of(tmp_path, tmp_path / "same.toml", tmp_path / "a" / "same.toml")


def test_projects_are_called_by_their_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text('extends = "quickstart"')
    (tmp_path / "c").mkdir()
    assert [row.name for row in rows_of(tmp_path, tmp_path / "a", tmp_path / "b/recipe.toml")] == ["a", "b"]
    with pytest.raises(UserError, match="c is neither a run's folder nor a project's"):
        rows_of(tmp_path, tmp_path / "c")


def test_projects_are_rows_of_their_folders_names(tmp_path, make_run):
    """`detrkit init` calls every recipe recipe.toml, and so does a run."""
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text('extends = "quickstart"\n')
    run = make_run(tmp_path / "done", "quickstart", {1: 10})
    rows = rows_of(tmp_path, tmp_path / "mine", tmp_path / "yours" / "recipe.toml", run / "recipe.toml")
    assert [row.name for row in rows] == ["mine", "yours", "done"]
    assert [job.folder.name for job in make_jobs(rows[:2], [3], [], runs=tmp_path)] == ["mine-seed3", "yours-seed3"]


def test_overrides_and_targets_are_told_apart(tmp_path):
    assert split_arguments(["quickstart", "train.epochs=2", "runs/x"]) == (["quickstart", "runs/x"], ["train.epochs=2"])


def test_times_on_several_devices_have_a_column_for_it(tmp_path):
    comparison = compare(rows_of(tmp_path, "quickstart", "quickstart_dab", runs=tmp_path))
    names = ["quickstart", "quickstart_dab"]

    def sheet(*devices):
        timings = {n: Timing(d, "fp32", 1, 64, 96, (10.0, 12.0), 10**6) for n, d in zip(names, devices, strict=True)}
        return make_sheets(comparison, {}, timings)[-1]

    alike, mixed = sheet("the CPU", "the CPU"), sheet("a GPU", "the CPU")
    assert "device" not in alike.columns
    assert alike.notes[0].startswith("On the CPU, ")
    assert [row[mixed.columns.index("device")] for row in mixed.rows] == ["a GPU", "the CPU"]
    assert not mixed.notes[0].startswith("On a GPU")
