"""A matrix of trainings, recipes by seeds: each in a process of its own, and what is finished is not done again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detrkit.engine.cores import available_cores
from detrkit.engine.interrupt import stop_on_signals
from detrkit.errors import UserError
from detrkit.recipe import Recipe
from detrkit.runs.history import RecordError, Run, differences, is_run, read_run
from detrkit.runs.lock import HANDED_OVER, take_lock

OUTPUT = "output.log"
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class Job:
    """One training.

    target: what `detrkit train` is told, a recipe's name or file; overrides: laid over it, without the seed.
    state: "waiting", "running", "elsewhere" (another process trains it), "done", "failed" or "stopped".
    """

    recipe: Recipe
    target: str
    overrides: Sequence[str]
    seed: int
    folder: Path
    state: str = "waiting"
    note: str = ""
    """why it failed or stopped"""
    process: subprocess.Popen | None = field(default=None, repr=False)
    slot: int = 0
    trust: bool = False
    """of its recipe and its run; see `load_recipe`"""

    @property
    def epochs(self) -> int:
        return self.recipe.section("train").epochs

    @property
    def started(self) -> subprocess.Popen:
        """The process of a job that was started here."""
        assert self.process is not None
        return self.process

    def read(self) -> Run:
        """Its run, as far as it is; raises what `read_run` does."""
        return read_run(self.folder, trust=self.trust, named=self.recipe.values.get("imports", ()))

    @property
    def output(self) -> Path:
        """Where everything goes that the training prints."""
        return self.folder / OUTPUT


def run_name(recipe: str, seed: int) -> str:
    """The name of a run's folder in a matrix: "ablations-table4-full-seed0"."""
    return f"{run_stem(recipe)}-seed{seed}"


def run_stem(recipe: str) -> str:
    """A recipe's name as the beginning of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", recipe)


def check_jobs(jobs: Sequence[Job]) -> None:
    """Marks the jobs that are finished already, and as failed those whose run has damaged metrics.

    Raises UserError that names every folder which holds a run of another recipe: nothing is trained then.
    """
    faults = []
    for job in jobs:
        if not is_run(job.folder):
            continue
        try:
            run = job.read()
        except RecordError as error:  # the others can be trained all the same
            job.state, job.note = "failed", str(error)
            continue
        told = differences(job.recipe, run.recipe)
        if run.seed != job.seed:
            told.insert(0, f"train.seed is {run.seed}, not {job.seed}")
        if told:
            more = f" and {len(told) - 4} more" if len(told) > 4 else ""
            faults.append(f"{job.folder}: {'; '.join(told[:4])}{more}")
        elif run.finished:
            job.state = "done"
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise UserError(
            f"runs of other recipes than those asked for are in the way:{listed}\n"
            "Choose another folder with --runs, or remove them"
        )


def train_all(jobs: Sequence[Job], *, parallel: int, watch: Callable[[Sequence[Job]], None]) -> str | None:
    """Train every job that is not done, `parallel` at a time, and wait for them.

    A training that fails does not keep the others from running. On Ctrl-C or SIGTERM the trainings are asked to write
    a checkpoint and stop, so that the same call goes on from there; a second signal does not wait for that.

    Args:
        watch: called with all jobs about twice a second.

    Returns:
        the signal that ended it early, or None.
    """
    running: list[Job] = []
    with stop_on_signals() as request:
        try:
            while True:
                _collect(running)
                if request.reason is None:
                    _start_more(jobs, running, parallel)
                watch(jobs)
                open_jobs = [job for job in jobs if job.state in ("waiting", "elsewhere")]
                if not running and (request.reason is not None or not open_jobs):
                    return request.reason
                if request.reason is not None:
                    _ask_to_stop(running)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            for job in running:  # only after an error or a second signal
                job.started.kill()
                job.started.wait()


def _start_more(jobs: Sequence[Job], running: list[Job], parallel: int) -> None:
    # Those that another process had in hand come last.
    for state in ("waiting", "elsewhere"):
        for job in jobs:
            if len(running) >= parallel:
                return
            if job.state == state and job not in running:
                _start(job, running, parallel)


def _start(job: Job, running: list[Job], parallel: int) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(job.folder)
    if lock is None:
        job.state = "elsewhere"
        return
    with lock:
        if is_run(job.folder):
            try:
                check_jobs([job])  # another process may have trained it meanwhile
            except UserError as error:
                job.state, job.note = "failed", str(error)
                return
            if job.state in ("done", "failed"):
                return
            arguments = ["--resume", str(job.folder), *job.overrides]  # those that a run may change on its way
        else:
            seed = f"train.seed={job.seed}"
            arguments = [job.target, *job.overrides, seed, "--run-dir", str(job.folder)]
        if job.trust:
            arguments.append("--trust")
        job.slot = min(set(range(parallel)) - {other.slot for other in running})
        if parallel > 1 and job.recipe.section("train").workers is None:
            arguments.append(f"train.workers={max(1, min(8, available_cores() // parallel - 1))}")
        with job.output.open("ab") as output:
            job.process = subprocess.Popen(
                [sys.executable, "-m", "detrkit", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_environment(parallel, job.slot), HANDED_OVER: str(lock.fileno())},
                start_new_session=True,  # Ctrl-C comes to us alone, and we pass it on
                # The training holds the lock as long as it lives, even if we are killed before it ends.
                pass_fds=(lock.fileno(),) if sys.platform != "win32" else (),
            )
    job.state, job.note = "running", ""
    running.append(job)


def _collect(running: list[Job]) -> None:
    """Take leave of the trainings that have ended."""
    for job in list(running):
        code = job.started.poll()
        if code is None:
            continue
        running.remove(job)
        finished, fault = False, ""
        try:
            finished = is_run(job.folder) and job.read().finished
        except RecordError as error:
            fault = str(error)
        if code == 0 and finished:
            job.state, job.note = "done", ""
        elif code == 130 or job.note == "stopping":
            job.state, job.note = "stopped", "interrupted"
        elif code == 0 and fault:
            job.state, job.note = "failed", fault
        elif code == 0:
            job.state, job.note = "stopped", "train.max_minutes"
        else:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            job.state, job.note = "failed", how


def _ask_to_stop(running: Sequence[Job]) -> None:
    for job in running:
        if job.note != "stopping":
            job.note = "stopping"
            job.started.send_signal(signal.SIGTERM)


def _environment(parallel: int, slot: int) -> Mapping[str, str]:
    """Cores and GPUs shared out, if several train at a time."""
    environment = dict(os.environ)
    if parallel == 1:
        return environment
    threads = str(max(1, available_cores() // parallel))
    environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if gpus := _gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def _gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]
