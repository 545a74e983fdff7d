"""The processes of one training on this machine, started by torch's own launcher."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from detrkit.engine.cores import available_cores
from detrkit.engine.interrupt import stop_signals
from detrkit.engine.options import TrainOptions
from detrkit.engine.workload import share_of_batch
from detrkit.errors import UserError
from detrkit.writing import explain

_LAUNCHED = "DETRKIT_LAUNCHED"  # a folder in which each process leaves a file of its number when it has begun
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_MISTAKE, _INTERRUPTED = 2, 130  # exit codes of `detrkit`
_PATIENCE = 20.0  # seconds; the launcher ends this process as soon as it has seen the cause


def count_processes(asked: str, options: TrainOptions) -> int:
    """What `--processes` says: a number, or auto, which is one for each GPU, and one on the CPU.

    Raises UserError if it is neither, if torchrun has started processes already, or if the batch cannot be shared out.
    """
    if "RANK" in os.environ:
        raise UserError("--processes starts them itself, and torchrun has done that already: leave one of them out")
    if asked == "auto":
        count = max(1, torch.cuda.device_count()) if options.device in ("auto", "cuda") else 1
    elif asked.isdecimal() and int(asked):
        count = int(asked)
    else:
        raise UserError(f"--processes is {asked!r}; should be a number from 1, or auto")
    share_of_batch(options, count)
    return count


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `detrkit ARGUMENTS` in several processes that train together, and wait for them.

    Each gets its share of the cores, unless `OMP_NUM_THREADS` says otherwise.

    Returns:
        the exit code: 0, 130 if they were asked to stop, or 1 after an error that is no person's, whose traceback is
        printed

    Raises:
        UserError: what ended the first that failed
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are `_stopping`'s
    )
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    logging.disable(logging.CRITICAL)  # the launcher's, which tells of a failure in words of its own
    try:
        with _stopping(processes) as asked:
            elastic_launch(config, sys.executable)("-m", "detrkit", *arguments)
    except SignalException:
        return _INTERRUPTED
    except ChildFailedError as error:
        return _told(error.failures, processes, asked=bool(asked))
    finally:
        logging.disable(logging.NOTSET)
        os.environ.clear()
        os.environ.update(before)
    return 0


@contextmanager
def _stopping(processes: int) -> Iterator[list[int]]:
    """Hands what asks for the end on to the processes, which finish their step, save and end; gives what came.

    Torch's launcher would kill those that take more than half a minute for it, without a word. Before all have begun
    there is nothing to save, and it ends them at once.
    """
    asked: list[int] = []
    with TemporaryDirectory(prefix="detrkit_") as begun:

        def hand_on(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            started = [int(path.name) for path in Path(begun).iterdir()]
            if len(started) < processes:
                raise SignalException("before the beginning", signal.SIGTERM)
            for process in started if sys.platform != "win32" else ():  # where Ctrl-C comes to each by itself
                with suppress(ProcessLookupError):
                    os.kill(process, number)

        os.environ[_LAUNCHED] = begun
        before = {each: signal.signal(each, hand_on) for each in stop_signals()}
        try:
            yield asked
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


@contextmanager
def told_to_launcher() -> Iterator[None]:
    """In a process that `launch` started, what goes wrong within is handed to it, which says it once for all.

    In one that torchrun started, a lost connection to the others is told in a line: it is no cause.
    """
    if _LAUNCHED not in os.environ:
        try:
            yield
        except RuntimeError as error:
            if "RANK" not in os.environ or not is_lost_connection(error):
                raise
            sys.exit(f"process {os.environ['RANK']} ends, as another one has: what that one says is the cause")
        return
    Path(os.environ[_LAUNCHED], str(os.getpid())).touch()
    try:
        yield
    except Exception as error:
        is_lost = isinstance(error, RuntimeError) and is_lost_connection(error)
        is_mistake = isinstance(error, UserError | OSError)
        text = explain(error) if isinstance(error, OSError) else str(error)
        if not is_mistake:
            text = f"{type(error).__name__}: {text}\n{traceback.format_exc()}"
        message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}  # as torch's launcher reads it
        with open(os.environ[_ERROR_FILE], "w", encoding="utf-8") as file:
            json.dump({"message": message, "seconds": time.time(), "is_lost": is_lost}, file)
        if is_lost:
            time.sleep(_PATIENCE)  # the process that is the cause may take longer to end, and is to be seen first
        sys.exit(_MISTAKE if is_mistake else 1)


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether this is what the others meet when a process has ended."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error) or "NCCL" in str(error)


def _told(failures: Mapping[int, ProcessFailure], processes: int, *, asked: bool = False) -> int:
    """Say what the failure was that brought the others about; they fail as soon as one does not answer them.

    asked: whether they were to stop, which one that has not begun to train does at once.
    """
    rank, first = min(failures.items(), key=lambda item: _order(item[1]))
    if first.exitcode == _INTERRUPTED or (asked and first.exitcode == -signal.SIGTERM):
        return _INTERRUPTED
    if _is_killed(first):
        often = ", as the system does where memory runs out" if -first.exitcode == signal.SIGKILL else ""
        raise UserError(f"process {rank} of {processes} was ended by {first.signal_name()}{often}")
    text = first.message["message"] if isinstance(first.message, dict) else first.message
    if first.exitcode == _MISTAKE:
        raise UserError(text)
    print(f"process {rank} of {processes} failed: {text}", file=sys.stderr)
    return 1


def _order(failure: ProcessFailure) -> tuple:
    """Causes before consequences: one that was killed, a mistake that was found, whatever came first.

    A process that fails leaves the others before it tells why, so that these may be the first to tell.
    """
    return (
        failure.exitcode == _INTERRUPTED,
        not _is_killed(failure),
        failure.exitcode != _MISTAKE,
        failure.error_file_data.get("is_lost", False),
        failure.error_file_data.get("seconds", inf),
    )


def _is_killed(failure: ProcessFailure) -> bool:
    """By somebody else: the launcher ends those that are left by SIGTERM."""
    return failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
