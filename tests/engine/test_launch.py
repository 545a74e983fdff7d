"""`detrkit train --processes`, and the same by torchrun: what is started, and what is said when one process fails."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import typer
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.run import get_args_parser

from detrkit.cli.app import app
from detrkit.engine.distributed import Processes, alone_among, processes
from detrkit.engine.launch import _told, count_processes, launch, told_to_launcher
from detrkit.engine.options import TrainOptions
from detrkit.engine.workload import Workload, unlike_one_batch
from detrkit.errors import UserError

RECIPE = """
extends = "quickstart"
imports = ["bad.py"]
matcher.costs.bad = { weight = 1.0 }
backbone.name = "test_resnet"
detector = { width = 32, heads = 2 }
data = { train_images = 8, val_images = 4 }
train = { epochs = 1, batch_size = 4, workers = 0, loggers = [] }
evaluate.pictures = 0
"""
COST = """
import os, signal, time
from detrkit import register
from detrkit.errors import DataError
from detrkit.matching.costs import Cost, pairs

calls = []

@register("cost", "bad")
class Bad(Cost):
    def __init__(self, *, weight: float = 1.0):
        self.weight = weight

    def __call__(self, output, targets):
        if os.environ.get("RANK") == "1" and output.boxes.shape[1] == 2:  # in the second process
            if os.environ["FAULT"] == "mistake":
                raise DataError("image 7 is [bold] broken")
            if os.environ["FAULT"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(1)
            if os.environ["FAULT"] == "slow" and len(calls) == 2:  # the first is the rehearsal's
                open("slow", "w").close()
                time.sleep(6)
        predicted, true = pairs(output.boxes, targets.boxes)
        return (predicted - true).abs().sum(-1)
"""


def begin(folder, fault):
    (folder / "bad.py").write_text(COST)
    (folder / "bad.toml").write_text(RECIPE)
    return subprocess.Popen(
        [sys.executable, "-m", "detrkit", "train", "bad.toml", "--processes", "2", "--run-dir", "run"],
        cwd=folder,
        env={**os.environ, "FAULT": fault, "XDG_STATE_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """The process when it has ended, with all that it printed."""
    out, err = process.communicate(timeout=300)
    return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)


@pytest.mark.slow
def test_two_processes_train_one_run(tmp_path):
    done = ended(begin(tmp_path, "none"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("effective batch 4 = 2 processes x 2 images") == 1
    assert (tmp_path / "run" / "last").is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"), [("mistake", "image 7 is [bold] broken"), ("kill", "process 1 of 2 was ended by SIGKILL")]
)
def test_what_ended_one_process_is_said_once_and_nothing_else(tmp_path, fault, said):
    done = ended(begin(tmp_path, fault))
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_a_step_that_takes_long_is_waited_for(tmp_path, monkeypatch):
    """Torch's launcher by itself kills what has not ended after a time, half a minute where nobody says another."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    process = begin(tmp_path, "slow")
    while not (tmp_path / "slow").exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.returncode == 130, done.stderr
    assert "stopped after step 1 (SIGINT)" in done.stdout
    assert (tmp_path / "run" / "last").is_dir()


@pytest.mark.parametrize(("ignored", "heeded"), [(False, True), (True, False)])
def test_a_closed_terminal_is_heeded_except_under_nohup(monkeypatch, ignored, heeded):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    met = []

    def begin(config, executable):
        met.append("SIGHUP" in config.signals_to_handle)  # torch's launcher ends all at once, or after half a minute
        return lambda *_: met.append(callable(signal.getsignal(signal.SIGHUP)))

    monkeypatch.setattr("detrkit.engine.launch.elastic_launch", begin)
    try:
        assert launch(["train"], 2) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert met == [False, heeded]


@pytest.mark.parametrize(
    "text", ["[../gloo/transport/tcp/pair.cc:547] Connection closed by peer", "NCCL error: remote process exited"]
)
def test_a_lost_connection_is_no_traceback(monkeypatch, text):
    monkeypatch.delenv("DETRKIT_LAUNCHED", raising=False)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="process 1 ends, as another one has"), told_to_launcher():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="a bug"), told_to_launcher():
        raise RuntimeError("a bug")


@pytest.mark.parametrize(("error", "waits"), [(RuntimeError("gloo/pair.cc: closed"), True), (ValueError("bug"), False)])
def test_a_process_that_lost_another_waits_for_that_one_to_be_seen_first(monkeypatch, tmp_path, error, waits):
    waited = []
    monkeypatch.setattr("detrkit.engine.launch.time.sleep", waited.append)
    monkeypatch.setenv("DETRKIT_LAUNCHED", str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit), told_to_launcher():
        raise error
    assert bool(waited) == waits
    assert str(error) in (tmp_path / "error.json").read_text()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 .* is not there: RANK, MASTER_ADDR, MASTER_PORT. .* unset WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "1"}, "RANK=1 .* is not there: WORLD_SIZE. .* unset RANK"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two' .* should be a count"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "the ranks are 0 to 1"),
    ],
)
def test_a_process_of_several_that_lacks_its_place_does_not_train_alone(monkeypatch, said, told):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with processes("cpu") as here:
        assert here == Processes()
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told), processes("cpu"):
        pass


@pytest.mark.parametrize(("name", "launcher"), [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")])
def test_processes_of_another_launcher_are_told_that_they_train_alone(monkeypatch, name, launcher):
    monkeypatch.delenv(name, raising=False)
    assert alone_among(Processes()) == []
    monkeypatch.setenv(name, "1")
    assert alone_among(Processes()) == []
    monkeypatch.setenv(name, "8")
    assert alone_among(Processes(world=8)) == []
    (line,) = alone_among(Processes())
    assert f"{launcher} started 8 processes ({name})" in line
    assert "torchrun" in line


def test_processes_that_the_caller_has_joined_train_together(monkeypatch):
    """As by `torch.multiprocessing.spawn`, which sets nothing in the environment."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    given = {"is_initialized": True, "get_rank": 1, "get_world_size": 2, "get_backend_config": "cuda:nccl"}
    for name, value in given.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    with processes("cpu") as here:
        assert here == Processes(rank=1, world=2, local_rank=0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r'init_process_group\("cpu:gloo,cuda:nccl"\)'), processes("cuda"):
        pass


def test_what_the_system_refuses_is_told_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("DETRKIT_LAUNCHED", str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit) as ended, told_to_launcher():
        raise PermissionError(errno.EACCES, "Permission denied", "runs")
    assert ended.value.code == 2
    told = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert told.startswith("runs: Permission denied. There is no permission")


def test_what_processes_and_pieces_compute_otherwise_is_told():
    norm = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    sizes = {"images": 16, "steps_per_epoch": 4, "epochs": 1, "reference_batch": 4}
    alone = Workload(world=1, share=4, micro_batch=4, **sizes)
    assert unlike_one_batch(alone, norm) == []
    for world, share in ((2, 2), (1, 4)):  # two processes; two pieces
        told = unlike_one_batch(Workload(world=world, share=share, micro_batch=2, **sizes), norm)
        assert [line.split()[0:3] for line in told] == [["images", "are", "padded"], ["1", "batch", "norm"]]
        assert len(unlike_one_batch(Workload(world=world, share=share, micro_batch=2, **sizes), norm[0])) == 1


def failure(code, seconds=None, text="its message", is_lost=False):
    found = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="nowhere")
    if seconds is not None:
        found.error_file_data, found.message = {"seconds": seconds, "is_lost": is_lost}, {"message": text}
    return found


def test_a_cause_is_told_from_its_consequences(capsys):
    lost = failure(1, 4.0, "RuntimeError: connection closed by peer", is_lost=True)
    with pytest.raises(UserError, match="process 1 of 3 was ended by SIGKILL"):
        _told({0: lost, 1: failure(-signal.SIGKILL), 2: failure(-signal.SIGTERM)}, 3)
    with pytest.raises(UserError, match="image 7"):
        _told({0: lost, 1: failure(2, 6.0, "image 7")}, 2)
    assert _told({0: lost, 1: failure(1, 4.5, "ValueError: a bug")}, 2) == 1
    assert "process 1 of 2 failed: ValueError: a bug" in capsys.readouterr().err
    assert _told({0: failure(130), 1: failure(130)}, 2) == 130
    assert _told({0: failure(130), 1: lost}, 2) == 1


def test_how_many_processes(monkeypatch):
    options = TrainOptions(batch_size=4)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [count_processes(n, options) for n in ("auto", "1", "4")] == [1, 1, 4]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert count_processes("auto", options) == 3
    assert count_processes("auto", TrainOptions(device="cpu")) == 1
    for asked, told in {
        "0": "--processes is '0'; should be a number from 1, or auto",
        "two": "'two'",
        "5": "too small for 5 processes",
    }.items():
        with pytest.raises(UserError, match=re.escape(told)):
            count_processes(asked, options)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="torchrun has done that already"):
        count_processes("2", options)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_torchrun_hands_every_option_on(verb):
    """It takes an option of ours for the beginning of one of its own, `--run` for `--run-path`, and refuses it."""
    command = typer.main.get_command(app).commands[verb]
    for option in command.params:
        if option.param_type_name == "option":
            ours = [verb, "quickstart", option.opts[0], *([] if option.is_flag else ["value"])]
            read = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "detrkit", *ours])
            assert (read.training_script, read.training_script_args) == ("detrkit", ours)
            assert SimpleNamespace(**vars(read)).nproc_per_node == "2"
