"""Each logger gets every number once, over an interruption too, and none ends a training."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from detrkit.errors import UserError
from detrkit.recipe import load_recipe
from detrkit.recipe.problems import RecipeError
from detrkit.runs import loggers
from detrkit.runs.loggers import Logger
from detrkit.runs.run_loggers import Loggers

from .test_resume import OPTIONS
from .toys import Killed, kill_at, toy_trainer

RECIPE = {"title": "toys", "train": {"epochs": 3, "patience": None}, "decoder": {"terms": ["content", "point"]}}


def write_picture(detector, folder):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "7.png")
    return [folder / "7.png"]


def begun(folder, *, resumed=False, said=None, **options):
    trainer = toy_trainer(folder, draw=write_picture, **OPTIONS, **options)
    if resumed:
        trainer.resume()
    said = [] if said is None else said
    trainer.run.begin_loggers(RECIPE, step=trainer.at.step, resumed=resumed, warn=said.append)
    return trainer


def interrupted_and_resumed(folder, name):
    """A run that is killed in step 9 of 15, after a checkpoint at 6 and a logged step 8, and goes on."""
    folder.mkdir()
    (folder / "recipe.toml").write_text("title = 'toys'\n")
    with pytest.raises(Killed):
        begun(folder, loggers=(name,), hook=kill_at(9), checkpoint_steps=3).fit()
    trainer = begun(folder, loggers=(name,), resumed=True)
    assert trainer.at.step == 6
    assert trainer.fit().finished
    return json.loads((folder / "loggers.json").read_text())["kept"][name]


def expected(folder):
    """Name -> [(step, value)] as metrics.jsonl has it."""
    found = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        name = {"train": "loss", "evaluate": "AP"}[line["kind"]]
        found.setdefault(f"{line['kind']}/{name}", []).append((line["step"], pytest.approx(line[name])))
    assert [step for step, _ in found["train/loss"]] == [4, 8, 12, 15]
    assert [step for step, _ in found["evaluate/AP"]] == [5, 10, 15]
    return {**found, "result/best_AP": [(15, pytest.approx(0.1))], "result/best_step": [(15, 5)]}


def test_tensorboard(tmp_path):
    interrupted_and_resumed(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    for name, values in expected(tmp_path / "run").items():
        assert [(e.step, e.value) for e in events.Scalars(name)] == values
    (text,) = events.Tensors("recipe/text_summary")
    assert b"train.epochs = 3" in text.tensor_proto.string_val[0]


def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # A database would do as well, but takes seconds to be made.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "toys")
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    kept = interrupted_and_resumed(tmp_path / "run", "mlflow")
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (kept, "run", "FINISHED")
    for name, values in expected(tmp_path / "run").items():
        assert sorted((m.step, m.value) for m in client.get_metric_history(kept, name)) == values
    assert run.data.params["decoder.terms"] == "['content', 'point']"
    assert [file.path for file in client.list_artifacts(kept, "pictures/step_10")] == ["pictures/step_10/7.png"]
    assert "recipe.toml" in [file.path for file in client.list_artifacts(kept)]


def test_trackio(tmp_path_factory, tmp_path):
    os.environ.setdefault("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))  # read once, when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    kept = interrupted_and_resumed(tmp_path / "run", "trackio")
    rows = SQLiteStorage.get_logs("detrkit", kept)
    for name, values in expected(tmp_path / "run").items():
        assert [(row["step"], row[name]) for row in rows if name in row] == values
    assert [row["step"] for row in rows if "pictures/7" in row] == [5, 10, 15]
    assert SQLiteStorage.get_run_config("detrkit", kept)["train.epochs"] == 3


def wandb_records(path):
    """The records of an offline run: a log in LevelDB's form, in blocks of 32 kB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, content = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        content += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(content)
            content = b""


def test_wandb(tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false", "PROJECT": "toys"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    pytest.importorskip("wandb")
    kept = interrupted_and_resumed(tmp_path / "run", "wandb")
    # Offline each start has its file, of the same run: `wandb sync` puts them together.
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert [path.name for path in files] == [f"run-{kept}.wandb"] * 2
    found, config = {}, {}
    for record in (record for path in files for record in wandb_records(path)):
        assert record.run.project in ("", "toys")
        config |= {item.key: item.value_json for item in record.config.update}
        for item in record.history.item:
            name = item.nested_key[0] if item.nested_key else item.key
            found.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
    for name, values in expected(tmp_path / "run").items():
        assert sorted(found[name].items()) == values
    assert sorted(found["pictures/7"]) == [5, 10, 15]
    assert json.loads(config["train"]) == RECIPE["train"]


class Broken(Logger):
    """Fails in the method that `at` names; its second number fails for "log"."""

    package = "json"
    at = ""
    calls: list[str]

    def begin(self, start):
        return self._call("begin") or "kept"

    def log(self, kind, step, values):
        Broken.calls.append("log")
        if Broken.at == "log" and Broken.calls.count("log") == 2:
            raise ConnectionError("the server is away\nand more")

    def close(self, *, finished):
        self._call("close")

    def _call(self, method):
        Broken.calls.append(method)
        if Broken.at == method:
            raise ConnectionError("the server is away\nand more")


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(loggers.LOGGERS, "wandb", Broken)
    Broken.calls = []
    return Broken


@pytest.mark.parametrize("method", ["log", "close"])
def test_a_logger_that_fails_is_named_once_and_ends_nothing(tmp_path, broken, method):
    broken.at, said = method, []
    outcome = begun(tmp_path, loggers=("tensorboard", "wandb"), said=said).fit()
    assert outcome.finished
    assert len(said) == 1
    assert said[0].startswith("the logger wandb failed and is left out from here on (the server is away);")
    assert broken.calls.count("log") == (2 if method == "log" else 8)  # 4 trained, 3 evaluated, 1 result
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("train/loss")) == 4  # the other one goes on


def test_a_full_disk_under_tensorboard_is_told_in_a_line(tmp_path, monkeypatch):
    """Its writing thread ends by the error, which Python would print as a traceback; the next call raises it again."""

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    printed, said = [], []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    trainer = begun(tmp_path, loggers=("tensorboard",), said=said)
    monkeypatch.setattr(RecordWriter, "write", full)
    assert trainer.fit().finished
    assert len(said) == 1
    assert "tensorboard failed and is left out from here on ([Errno 28] No space left on device)" in said[0]
    assert not printed
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert [failed.exc_type for failed in printed] == [ZeroDivisionError]  # of others, all is told as ever


def test_a_logger_that_cannot_begin_stops_a_new_run_but_not_a_resumed_one(tmp_path, broken):
    broken.at, said = "begin", []
    (tmp_path / "recipe.toml").write_text("title = 'toys'\n")
    with pytest.raises(
        UserError, match=r"wandb cannot begin \(the server is away\); mend that and go on with --resume"
    ):
        begun(tmp_path, loggers=("wandb",))
    toy_trainer(tmp_path, hook=None, epochs=1).fit()
    assert begun(tmp_path, loggers=("wandb",), resumed=True, said=said).fit().finished
    assert len(said) == 1
    assert broken.calls.count("log") == 0


def test_steps_that_are_lost_twice_are_logged_once(tmp_path, broken, monkeypatch):
    """Killed again before the first lost step came back: what the tool holds is remembered in the run's folder."""
    seen = []
    monkeypatch.setattr(Broken, "log", lambda self, kind, step, values: seen.append((kind, step)))
    broken.at = ""
    with pytest.raises(Killed):
        begun(tmp_path, loggers=("wandb",), hook=kill_at(9), checkpoint_steps=3).fit()
    with pytest.raises(Killed):
        begun(tmp_path, loggers=("wandb",), resumed=True, hook=kill_at(1)).fit()
    begun(tmp_path, loggers=("wandb",), resumed=True).fit()
    trained = [step for kind, step in seen if kind == "train"]
    assert trained == [4, 8, 12, 15]


def test_what_cannot_log_is_refused():
    with pytest.raises(RecipeError, match=r"train\.loggers.*wandbb.*wandb"):
        load_recipe("quickstart", ["train.loggers=['wandbb']"])
    assert load_recipe("quickstart").section("train").loggers == ("tensorboard",)


def test_a_package_that_is_not_there_is_named_with_its_extra(broken, monkeypatch):
    monkeypatch.setattr(Broken, "package", "no_such_package")
    with pytest.raises(UserError, match=r"'wandb', which is not installed: pip install 'detrkit\[wandb\]'"):
        Loggers(("wandb",))
