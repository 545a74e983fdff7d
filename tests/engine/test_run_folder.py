import io
import json
import re
import shlex
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from detrkit.engine.data_checks import with_classes
from detrkit.engine.options import TrainOptions
from detrkit.engine.progress import Reporter, Status, duration, memory_gb
from detrkit.engine.workload import plan, warnings
from detrkit.errors import DataError, UserError
from detrkit.runs.run_folder import RunFolder, new_run_folder
from detrkit.runs.run_loggers import Loggers
from detrkit.runs.state import way_out


def test_a_run_is_not_overwritten(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.create(recipe="title = 'x'", categories="[]")
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        run.create(recipe="title = 'y'", categories="[]")
    assert "x" in (run.path / "recipe.toml").read_text()


def test_names_that_are_taken(tmp_path):
    for name in ("sap", "sap-2", "sap-3"):
        # A training that has nothing to write yet has its folder for itself.
        with new_run_folder(tmp_path / "runs", "sap") as folder, new_run_folder(tmp_path / "runs", "sap") as other:
            assert (folder.name, other.is_dir()) == (name, True)
            (folder / "recipe.toml").touch()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["sap", "sap-2", "sap-3"]


def test_a_training_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), new_run_folder(tmp_path / "runs", "sap") as folder:
        raise UserError(folder.name)
    assert list(tmp_path.iterdir()) == []


def test_metrics_rewind_to_the_byte(tmp_path):
    run = RunFolder(tmp_path)
    run.log("train", 1, {"loss": 2.0, "losses": {"box": float("nan")}})
    size = run.metrics_size()
    run.log("train", 2, {"loss": 1.0})
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "tra')  # a line that a kill has cut
    run.rewind_metrics(size)
    run.log("train", 2, {"loss": 1.5})
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert lines == [
        {"kind": "train", "step": 1, "loss": 2.0, "losses": {"box": None}},
        {"kind": "train", "step": 2, "loss": 1.5},
    ]


@pytest.mark.parametrize(
    ("options", "images", "world", "share", "accumulation", "effective"),
    [
        ({"batch_size": 16}, 100, 1, 16, 1, 16),
        ({"batch_size": 16, "micro_batch": 2}, 100, 1, 16, 8, 16),
        ({"batch_size": 16, "micro_batch": 3}, 100, 4, 4, 2, 16),
        ({"batch_size": 16}, 100, 3, 5, 1, 15),
        ({"batch_size": 16, "micro_batch": 32}, 10, 1, 10, 1, 10),
    ],
)
def test_workload(options, images, world, share, accumulation, effective):
    settings = TrainOptions(**options, warmup_steps=0, drop_epochs=())
    workload = plan(settings, images=images, steps_per_epoch=3, world=world)
    assert (workload.share, workload.accumulation, workload.effective_batch) == (share, accumulation, effective)
    assert bool(warnings(workload, settings)) == (effective != 16)


def test_more_processes_than_a_batch_has_images():
    with pytest.raises(UserError, match="too small for 4 processes"):
        plan(TrainOptions(batch_size=2), images=100, steps_per_epoch=1, world=4)


def test_warnings_name_the_numbers():
    options = TrainOptions(epochs=12, drop_epochs=(11, 40), warmup_steps=1000, batch_size=16)
    found = " ".join(warnings(plan(options, images=160, steps_per_epoch=10, world=1), options))
    assert "the training has 120 steps" in found
    assert "[40]" in found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"schedule": "cosine", "drop_epochs": ()}, []),
        ({"drop_factor": 0.5, "warmup_steps": 1}, []),
        (
            {"schedule": "cosine", "flat_epochs": 3, "lowest": 0.1, "drop_epochs": (3,)},
            [
                'train.flat_epochs and train.lowest change nothing with train.schedule = "cosine"; only "flat_cosine" '
                "reads them",
                'train.drop_epochs changes nothing with train.schedule = "cosine"; only "step" reads it',
            ],
        ),
        ({"momentum": 0.95}, ['train.momentum changes nothing with train.optimizer = "adamw"; only "sgd" reads it']),
        ({"optimizer": "sgd", "momentum": 0.95}, []),
        ({"warmup_steps": 0, "warmup_power": 2}, ["train.warmup_power changes nothing with train.warmup_steps = 0"]),
    ],
)
def test_options_that_nothing_reads_are_told(given, told):
    options = TrainOptions(**{"warmup_steps": 10, **given})
    assert warnings(plan(options, images=160, steps_per_epoch=10, world=1), options) == told


class FakeRecipe:
    def __init__(self, classes):
        self.classes = classes

    def get(self, key):
        return self.classes

    def source(self, key):
        return "mine.toml:3"

    def with_values(self, values, source):
        return FakeRecipe(values["detector.classes"])


def test_the_class_count_comes_from_the_data():
    source = SimpleNamespace(categories=("a", "b", "c"))
    assert with_classes(FakeRecipe(None), source).classes == 3
    assert with_classes(FakeRecipe(91), source).classes == 91
    with pytest.raises(DataError, match=r"detector.classes is 2 \(mine.toml:3\).*has 3 classes"):
        with_classes(FakeRecipe(2), source)


def test_lines_are_plain_where_there_is_no_terminal(tmp_path):
    text = io.StringIO()
    reporter = Reporter(run=RunFolder(tmp_path), console=Console(file=text, width=40))
    workload = plan(TrainOptions(epochs=2, batch_size=4), images=40, steps_per_epoch=10, world=1)
    reporter.start(workload, 0)
    status = Status(
        step=20, epoch=2, losses={"total": 1.5, "box": 0.25, "box.0": 9.0}, rate=1e-4,
        images_per_second=12.34, memory=1.0, seconds_left=61.0,
    )  # fmt: skip
    reporter.show(status)
    reporter.line(status)
    expected = "epoch 2/2  step 20/20  loss 1.5 (box 0.25)  rate 0.0001  12.3 images/s  1.0 GB  1:01 left\n"
    assert text.getvalue() == expected
    assert (tmp_path / "log.txt").read_text() == expected


@pytest.mark.parametrize("width", [60, 80, 200])
def test_steps_and_pace_are_whole_in_a_terminal(width):
    """Of a training as long as published ones, too: a bar may become short, a number may not."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    reporter = Reporter(run=object(), console=console)
    workload = plan(TrainOptions(epochs=50, batch_size=16), images=118_287, steps_per_epoch=7393, world=1)
    reporter.start(workload, 0)
    status = Status(
        step=123_456, epoch=17, losses={"total": 12.35}, rate=1.25e-4,
        images_per_second=12.3, memory=12.4, seconds_left=123_456.0,
    )  # fmt: skip
    reporter.show(status)
    reporter.stop()
    for whole in ("epoch 17/50", "123456/369650", "12.3 images/s", "34:17:36 left", "loss 12.35"):
        assert whole in text.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_no_line_of_progress_is_longer_than_the_terminal(encoding):
    """A terminal would fold it, and the bars be drawn anew below instead of over it."""
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding, errors="backslashreplace")
    reporter = Reporter(run=object(), console=Console(file=file, width=60, force_terminal=True, color_system=None))
    reporter.start(plan(TrainOptions(epochs=2, batch_size=4), images=40, steps_per_epoch=10, world=1), 0)
    losses = {"total": 1.5, **{f"a_long_name_of_term_{number}": 0.25 for number in range(9)}}
    reporter.show(Status(1, 1, losses, 1e-4, 12.34, 1.0, 61.0))
    reporter.stop()
    file.flush()
    lines = re.split(r"[\r\n]+|\x1b\[[0-9;?]*[A-Za-z]", written.getvalue().decode(encoding))
    assert any("a_long_name" in line for line in lines)
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize(("platform", "peak"), [("linux", 1_000_000), ("darwin", 1_024_000_000)])
def test_memory_is_in_gigabytes(monkeypatch, platform, peak):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=peak))
    assert memory_gb(torch.device("cpu")) == pytest.approx(1.024)


def test_durations():
    assert [duration(seconds) for seconds in (0, 59.6, 3600, 3723)] == ["0:00", "1:00", "1:00:00", "1:02:03"]


@pytest.mark.parametrize("content", [b"", b"\xa3", b"[]", b'{"kept": 3, "logged": {}}', b'{"kept": {}, "logged": [3]}'])
def test_a_damaged_file_of_loggers_begins_them_anew(tmp_path, content):
    (tmp_path / Loggers.FILE).write_bytes(content)
    loggers = Loggers(["tensorboard"])
    loggers.begin(tmp_path, {}, step=0, resumed=True, forgotten={"train": 3}, warn=print)
    loggers.close(finished=False)
    assert json.loads((tmp_path / Loggers.FILE).read_text())["logged"] == {"train": 3}


def test_a_flat_rate_that_leaves_no_epochs_for_its_fall_is_told():
    def told(epochs, flat, low):
        options = TrainOptions(
            epochs=epochs, schedule="flat_cosine", flat_epochs=flat, low_epochs=low, warmup_steps=0, batch_size=2
        )
        return warnings(plan(options, images=4, steps_per_epoch=2, world=1), options)

    assert told(12, 6, 6) == told(12, 11, 0) == []
    assert "the rate never falls" in told(12, 12, 0)[0]
    assert "the rate never falls" in told(5, 6, 3)[0]
    assert "more than the 12 epochs" in told(12, 8, 6)[0]


def test_commands_take_names_with_spaces(tmp_path):
    run = RunFolder(tmp_path / "my run")
    run.create(recipe="title = 'x'", categories="[]")
    assert shlex.split(run.way_on) == ["detrkit", "train", "--resume", str(run.path)]
    assert f"train.init_from={run.path / 'last'}" in shlex.split(way_out(run.path / "last"))
    assert str(run.best) not in shlex.split(way_out(run.path / "last"))  # there is none
    run.best.mkdir()
    (run.best / "weights.safetensors").touch()
    assert str(run.best) in shlex.split(way_out(run.path / "last"))


def test_a_project_is_no_run_though_both_have_a_recipe(tmp_path):
    (tmp_path / "recipe.toml").touch()
    assert not RunFolder(tmp_path).exists
    (tmp_path / "metrics.jsonl").touch()
    assert RunFolder(tmp_path).exists


def test_patience_without_evaluations_is_told():
    def told(**options):
        options = TrainOptions(epochs=12, warmup_steps=0, drop_epochs=(), batch_size=4, **options)
        return warnings(plan(options, images=4, steps_per_epoch=2, world=1), options)

    assert told(patience=3, evaluate_every=0) == [
        "train.patience is 3, but with train.evaluate_every = 0 nothing ends sooner by it"
    ]
    assert told(patience=3) == told(evaluate_every=0) == []
