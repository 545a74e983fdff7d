"""`detrkit compare` from the command line: its tables and files, and trainings that are cut short."""

import csv
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from detrkit.cli.app import app
from detrkit.cli.compare import _seeds
from detrkit.compare.matrix import Job, check_jobs, run_name, train_all
from detrkit.compare.matrix_progress import MatrixProgress
from detrkit.compare.targets import gather_rows, recipes_of_table
from detrkit.detector import build_detector
from detrkit.errors import UserError
from detrkit.evaluation.errors import KINDS
from detrkit.recipe import load_recipe
from detrkit.runs.checkpoint import format_categories, save_weights
from detrkit.zoo.published import published_results

TINY = """
extends = "quickstart"
queries.grid = [2, 3]
decoder.layers = 1
data = { image_size = 64, train_images = 192, val_images = 4 }
train = { epochs = 3, device = "cpu", log_every = 2 }
evaluate.pictures = 0
"""


def invoke(*arguments):
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_recipes_alone_are_counted(tmp_path):
    output = invoke("quickstart", "quickstart_dab", "--size", "64x64", "--runs", tmp_path)
    [line] = [line for line in output.splitlines() if line.startswith("quickstart_dab")]
    assert re.fullmatch(r"quickstart_dab +0\.\d\d +0\.\d\d +0\.\d\d +- +- +- +-", line.rstrip())
    assert "Average precision" not in output
    assert "plain form" not in output  # it saves nothing that a table of two decimals shows
    assert "0.00" not in output
    assert "2 of 2 rows have no result yet: the same command with --run trains them" in output
    large = invoke("quickstart", "--size", "800x800", "--runs", tmp_path)
    assert re.search(r"plain form: .* saves 0\.\d*[1-9]\d* GFLOPs, and fills the .* with zeros, which costs", large)


@pytest.mark.parametrize("table", ["1", "2", "4"])
def test_published_tables_are_compared_whole_and_in_their_order(tmp_path, table):
    rows = gather_rows(recipes_of_table(table), [], runs=tmp_path)
    published = [row for row in published_results() if row["table"] == table]
    assert [row.published for row in rows] == published  # each row has its recipe, and none has two


def test_a_table_without_recipes_is_named():
    with pytest.raises(UserError, match="no shipped recipe has a row of Table 9; there are recipes of 1, 2, 3, 4"):
        recipes_of_table("9")


def test_tables_stand_beside_other_targets(tmp_path):
    output = invoke("--table", "4", "quickstart", "--size", "64x64", "--runs", tmp_path)
    lines = output.splitlines()
    first, last = (next(i for i, line in enumerate(lines) if line.startswith(n)) for n in ("ablations/", "quickstart"))
    assert last - first == 8
    assert re.search(r" Table 4, 12 ep +36\.2 ", lines[first])


def test_overrides_are_told_beside_a_published_row(tmp_path):
    few = ["queries.grid=[5, 5]", "decoder.layers=1", "backbone.name=test_resnet", "backbone.levels=[-1]"]
    output = invoke("sap_detr_r50_50ep", *few, "--size", "64x64", "--runs", tmp_path)
    assert "decoder.layers=1" in output
    assert "published figures are those of the recipes without" in output
    assert "published GFLOPs are a mean over COCO images of many sizes: --coco-mean" in output


def test_runs_that_cannot_be_counted_are_named_and_the_others_shown(tmp_path, make_run):
    make_run(tmp_path / "broken", "quickstart", {}, overrides=["geometry.type=point"])
    make_run(tmp_path / "sound", "quickstart", {1: 10})
    output = invoke(tmp_path, "--size", "64x64", "--runs", tmp_path / "none")
    assert re.search(r"warning: broken cannot be built: .* needs references with sides", output)
    assert re.search(r"(?m)^sound +1\.37", output)
    with pytest.raises(UserError, match=r"broken cannot be built: .*needs references with sides"):
        invoke(tmp_path / "broken", "--size", "64x64", "--runs", tmp_path / "none")


def test_runs_on_other_data_are_told_apart(tmp_path, make_run):
    make_run(tmp_path / "quickstart", "quickstart", {1: 10})
    make_run(tmp_path / "quickstart-2", "quickstart", {1: 20}, overrides=["data.val_images=20"])
    output = invoke(tmp_path, "--baseline", "quickstart", "--size", "64x64", "--runs", tmp_path / "none")
    told = "Other data than quickstart's in quickstart-2: data.val_images is 20, not 300."
    assert told in output
    make_run(tmp_path / "same" / "a", "quickstart", {1: 10})
    make_run(tmp_path / "same" / "b", "quickstart", {1: 10}, overrides=["data.augment.type=none"])
    output = invoke(tmp_path / "same", "--size", "64x64", "--runs", tmp_path / "none")
    assert "Other data" not in output


def test_a_folder_named_like_an_option_is_other_data(tmp_path, make_run):
    for name in ("roads", "roads.augmented"):
        root = f"data.root={tmp_path / name}"
        make_run(tmp_path / "runs" / name, "quickstart", {1: 10}, overrides=["data.type=coco", root])
    output = invoke(tmp_path / "runs", "--size", "64x64", "--runs", tmp_path / "none")
    assert "Other data than roads's in roads.augmented: data.root is" in output


def test_a_run_with_other_values_is_not_called_as_the_recipe(tmp_path, make_run):
    run = make_run(tmp_path / "quickstart-4", "quickstart", {1: 10}, overrides=["decoder.layers=1"])
    output = invoke(run, "quickstart_dab", "--size", "64x64", "--runs", tmp_path / "none")
    assert re.search(r"(?m)^quickstart-4 +1 ", output)


def test_the_files_agree_with_the_runs(tmp_path, make_run):
    for seed, ap in ((0, 30), (1, 34)):
        make_run(tmp_path / f"quickstart-seed{seed}", "quickstart", {1: ap / 2, 2: ap}, seed=seed)
    make_run(tmp_path / "quickstart_dab-seed0", "quickstart_dab", {1: 10, 2: 20}, minutes=None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("stays")
    wanted = ["quickstart", "quickstart_dab", "--baseline", "quickstart_dab", "--epochs-to", 15, "--size", "64x64"]
    output = invoke(*wanted, "--runs", tmp_path, "--out", out)
    assert re.search(r"quickstart +2 +2 of 4 +32\.0 ±2\.8 +32\.0 ±2\.8 +32\.0 ±2\.8 +\+12\.0 +-", output)
    assert {p.name for p in out.iterdir()} == {
        "mine.txt",
        "table.md",
        "table.tex",
        "table.csv",
        "table.json",
        "curves.png",
        "report.html",
    }
    table = json.loads((out / "table.json").read_text())
    assert table["equal_epoch"] == 2
    quick, dab = table["rows"]
    assert quick["equal"]["AP"]["values"] == pytest.approx([30, 34])
    assert quick["equal"]["AP_difference"] == pytest.approx(12)
    assert dab["epochs_to_ap"]["mean"] == pytest.approx(1.5)
    with (out / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["last.AP.mean"]) for line in lines] == pytest.approx([32, 20])
    assert int(lines[0]["costs.parameters"]) == quick["costs"]["parameters"]
    markdown = (out / "table.md").read_text()
    assert "| quickstart | 2 | 2 of 4 | 32.0 ±2.8 |" in markdown
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<td>32.0 ±2.8</td>" in page
    assert not re.search(r'src="(?!data:)', page)
    links = re.findall(r'href="([^"]*)"', page)
    assert links == [f"../{name}" for name in ("quickstart-seed0", "quickstart-seed1", "quickstart_dab-seed0")]
    assert all((out / link).is_dir() for link in links)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tables_are_written_where_curves_cannot_be_drawn(tmp_path, make_run, monkeypatch):
    def fail(*arguments, **more):
        raise ValueError("no such font")

    monkeypatch.setattr("detrkit.compare.files.draw_curves", fail)
    run = make_run(tmp_path / "a", "quickstart", {1: 10})
    told = CliRunner().invoke(app, ["compare", str(run), "--size", "64x64", "--out", str(tmp_path / "out")])
    assert told.exit_code == 1
    assert told.output.count("curves could not be drawn: ValueError: no such font") == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.md", "table.tex", "table.csv", "table.json", "report.html"}


def test_differences_are_in_all_tables_and_files(tmp_path, make_found):
    for seed in range(2):
        make_found(tmp_path / f"good-seed{seed}", "quickstart", noise=0.08, seed=seed)
        make_found(tmp_path / f"bad-seed{seed}", "quickstart_dab", noise=0.2, seed=seed)
    (tmp_path / "good-seed1" / "report.html").write_text("<p>a report")
    out = tmp_path / "tables" / "all"
    wanted = [tmp_path, "--baseline", "bad", "--size", "64x64", "--runs", tmp_path / "none", "--out", out]
    output = invoke(*wanted)
    interval = r"\[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]"
    assert re.search(rf"(?m)^good +2 pairs +\d\d\.\d ±\d\.\d +\+\d\d\.\d\d \*? +({interval} +){{3}}[\d>]+$", output), (
        output
    )
    assert "Differences to bad in costs of errors" in output
    row = json.loads((out / "table.json").read_text())["rows"][1]
    assert row["paired"]["seeds"] == [0, 1]
    ap = row["paired"]["differences"]["AP"]
    assert ap["low"] < ap["over_images"]["low"] < ap["value"] == pytest.approx(row["equal"]["AP_difference"], abs=1e-6)
    assert set(row["costs_of_errors"]) == set(KINDS)
    with (out / "table.csv").open() as file:
        line = list(csv.DictReader(file))[1]
    assert float(line["paired.differences.AP.over_seeds.high"]) == ap["over_seeds"]["high"]
    links = re.findall(r'href="([^"]*)"', (out / "report.html").read_text())
    assert links[-1] == "../../good-seed1/report.html"
    assert all((out / link).exists() for link in links)


def test_rows_are_sorted_by_a_column(tmp_path, make_run):
    for name, ap in (("a", 10), ("b", 30), ("c", 20)):
        make_run(tmp_path / name, "quickstart", {1: ap}, overrides=[f"decoder.layers={ord(name) - 96}"])
    rows = [tmp_path, "--size", "64x64", "--runs", tmp_path / "none"]

    def order(output):
        return re.findall(r"(?m)^([abc]) +1 +1 of 4 ", output)

    assert order(invoke(*rows, "--sort", "best", "--out", tmp_path / "out")) == ["b", "c", "a"]
    assert [row["recipe"] for row in json.loads((tmp_path / "out" / "table.json").read_text())["rows"]] == [*"bca"]
    result = CliRunner().invoke(app, ["compare", *map(str, rows), "--sort", "beast"])
    assert order(result.output) == ["a", "b", "c"]  # what was measured is shown all the same
    assert isinstance(result.exception, UserError)
    assert '--sort beast is no column; did you mean "best"?; there are recipe, seeds' in str(result.exception)


def test_evaluate_makes_the_detections_that_are_missing(tmp_path, make_run):
    """Untrained detectors, which find next to nothing, as their records say."""
    few = ["data.val_images=4", "data.image_size=64", "decoder.layers=1", "queries.grid=[2, 3]", "train.device=cpu"]
    for name, overrides in (("one", few), ("other", [*few, "decoder.feedforward=16"])):
        run = make_run(tmp_path / name, "quickstart", {4: 0}, overrides=overrides)
        recipe = load_recipe(run / "recipe.toml")
        source = recipe.section("data")()
        (run / "categories.json").write_text(format_categories(source.categories))
        (run / "last").mkdir()
        torch.manual_seed(0)
        save_weights(build_detector(recipe).state_dict(), run / "last" / "weights.safetensors", {"step": "40"})
    wanted = [tmp_path, "--baseline", "one", "--size", "64x64", "--runs", tmp_path / "none"]
    assert "`detrkit evaluate RUN --which last` makes them, and so does --evaluate" in invoke(*wanted)
    output = invoke(*wanted, "--evaluate")
    assert "Costs of errors" in output
    assert "Not by image" not in output
    made = tmp_path / "one" / "compared" / "detections.json"
    before = made.stat().st_mtime_ns
    invoke(*wanted, "--evaluate")
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart", "--evaluate"], "--evaluate goes with --baseline"),
        (["quickstart", "--size", "800"], "--size is '800'"),
        (["quickstart", "--baseline", "dab"], "--baseline dab is no row"),
        (["quickstart", "--run", "--seeds", "few"], "--seeds is 'few'"),
        (["quickstart", "--run", "--seeds", ""], "--seeds is ''"),
        (["quickstart", "--seeds", "3"], "--seeds goes with --run"),
        (["quickstart", "--parallel", "1"], "--parallel goes with --run"),
        (["quickstart", "--epochs-to", "20"], "--epochs-to goes with trainings"),
        (["quickstart", "--baseline", "quickstart"], "--baseline goes with trainings"),
        (["train.epochs=3"], "compare what"),
        (["quickstar"], "did you mean"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["compare", *arguments, "--runs", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("4,5", [4, 5]), ("7,", [7]), ("4,04, 4,1", [4, 1])])
def test_each_seed_is_trained_once(text, seeds):
    assert _seeds(text) == seeds


@pytest.mark.parametrize("ap", ["-5", "101"])
def test_an_ap_is_a_percentage(tmp_path, make_run, ap):
    make_run(tmp_path / "a", "quickstart", {1: 10})
    asked = ["compare", str(tmp_path), "--baseline", "a", "--epochs-to", ap, "--size", "64x64"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert "equal" in done.output


@pytest.mark.parametrize("option", ["--out", "--runs"])
def test_an_output_that_is_a_file_is_named_before_the_work(tmp_path, monkeypatch, option):
    monkeypatch.setattr("detrkit.compare.targets.gather_rows", None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{option} .*file is a file; it should be a folder"):
        invoke("quickstart", "--run", option, tmp_path / "file")


def test_overrides_on_runs_alone_are_refused(tmp_path, make_run):
    run = make_run(tmp_path / "x", "quickstart", {1: 10})
    with pytest.raises(UserError, match=r"train\.epochs=9 is laid over recipes, and only runs were named"):
        invoke(run, "train.epochs=9", "--size", "64x64")


def job_of(folder, *overrides, seed=0):
    recipe = load_recipe("quickstart", overrides)
    return Job(recipe, "quickstart", list(overrides), seed, folder / run_name(recipe.name, seed))


def test_a_run_of_another_recipe_is_refused_and_a_finished_one_left_alone(tmp_path, make_run):
    make_run(tmp_path / "quickstart-seed0", "quickstart", {1: 10, 4: 20})
    done = job_of(tmp_path)
    check_jobs([done])
    assert done.state == "done"
    assert train_all([done], parallel=1, watch=lambda jobs: None) is None
    assert done.process is None
    with pytest.raises(UserError, match=r"quickstart-seed0: train\.epochs is 4, not 6"):
        check_jobs([job_of(tmp_path, "train.epochs=6")])
    (tmp_path / "quickstart-seed0").rename(tmp_path / "quickstart-seed5")
    with pytest.raises(UserError, match=r"train\.seed is 0, not 5"):
        check_jobs([job_of(tmp_path, seed=5)])


def test_damaged_metrics_of_one_run_are_named_and_the_others_go_on(tmp_path, make_run):
    for seed in (0, 1):
        make_run(tmp_path / f"quickstart-seed{seed}", "quickstart", {1: 10, 4: 20}, seed=seed)
    metrics = tmp_path / "quickstart-seed1" / "metrics.jsonl"
    metrics.write_text("{nonsense\n" + metrics.read_text())
    asked = ["quickstart", "--run", "--seeds", "2", "--runs", tmp_path, "--size", "64x64"]
    result = CliRunner().invoke(app, ["compare", *map(str, asked)])
    assert result.exit_code == 1
    assert "quickstart-seed1 failed" in result.output
    assert f"quickstart-seed1 is left out: {metrics}:1: is not JSON" in result.output.replace("\n", "")
    assert "Average precision" in result.output  # of the other


def test_metrics_that_are_damaged_meanwhile_end_one_training_alone(tmp_path, monkeypatch):
    """A training that writes nonsense and ends well, while the table of all looks at it."""
    writes = "import sys; open(sys.argv[-1] + '/metrics.jsonl', 'w').write('nonsense\\n')"
    started, popen = [], subprocess.Popen

    def start(command, **more):
        started.append(command)
        (Path(command[-1]) / "recipe.toml").write_text('extends = "quickstart"\n')
        return popen([sys.executable, "-c", writes, command[-1]], **more)

    monkeypatch.setattr(subprocess, "Popen", start)
    jobs = [job_of(tmp_path, seed=seed) for seed in (0, 1)]
    with MatrixProgress(Console(file=io.StringIO())) as progress:
        assert train_all(jobs, parallel=1, watch=progress) is None
    assert len(started) == 2
    assert [job.state for job in jobs] == ["failed", "failed"]
    assert all("metrics.jsonl:1: is not JSON" in job.note for job in jobs)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, make_run):
    job = job_of(tmp_path)
    job.folder.mkdir()
    lock = (job.folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    states = []

    def watch(jobs):
        states.append(job.state)
        if states == ["elsewhere"]:
            whole = make_run(tmp_path / "whole", "quickstart", {4: 20})
            for path in whole.iterdir():
                path.rename(job.folder / path.name)
            lock.close()

    assert train_all([job], parallel=1, watch=watch) is None
    assert states == ["elsewhere", "done"]
    assert job.process is None


@pytest.mark.slow
def test_trainings_go_on_where_they_were_interrupted(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    # It trains nothing: its data set is not there. The others must not suffer from that.
    (tmp_path / "broken.toml").write_text('extends = "quickstart_coco"\ndata.root = "nowhere"\n')
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "detrkit", "compare", "tiny.toml", "--run", "--runs", "runs"]
    command += ["--size", "64x64"]
    where = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": where}
    begun = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = runs / "tiny-seed0" / "metrics.jsonl"
    while begun.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    begun.send_signal(signal.SIGINT)
    output = begun.communicate()[0]
    assert begun.returncode == 130, output
    assert "the same command goes on" in output
    before = metrics.read_text().splitlines()
    assert before
    assert json.loads(before[-1])["epoch"] < 3

    command.append("broken.toml")
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "broken-seed0 failed (exit code 2): runs/broken-seed0/output.log" in again.stdout
    assert "nowhere" in (runs / "broken-seed0" / "output.log").read_text()
    assert re.search(r"^tiny +1 +3 ", again.stdout, re.MULTILINE)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps))
    evaluations = [line for line in lines if line["kind"] == "evaluate"]
    assert [line["epoch"] for line in evaluations] == [1, 2, 3]
    minutes = [line["minutes"] for line in evaluations]
    assert minutes == sorted(minutes)
    assert "resumed after step" in (runs / "tiny-seed0" / "log.txt").read_text()
    assert len(json.loads((runs / "tiny-seed0" / "environment.json").read_text())) == 2

    recipe = load_recipe(tmp_path / "tiny.toml")
    job = Job(recipe, "tiny.toml", [], 0, runs / "tiny-seed0")
    check_jobs([job])
    assert job.state == "done"
