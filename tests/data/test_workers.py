"""The processes that read images: which signals they heed, and how they end."""

import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils import data

from detrkit.data.batch import Example
from detrkit.data.loader import SampleKey, WorkerPool, _begin_worker, leave_group
from detrkit.errors import DataError

from .conftest import shapes


@pytest.fixture(scope="module")
def source():
    return shapes(train_images=14, val_images=7, image_size=(40, 64))


class Threads(data.Dataset):
    """Each example's label is the number of threads that its process has after some work."""

    def __getitem__(self, key):
        torch.rand(2000, 300) @ torch.rand(300, 2000)
        threads = len(list(Path("/proc/self/task").iterdir()))
        return Example(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 4), torch.tensor([threads]), 1, (4, 4))


def test_workers_end_with_their_pool():
    """Without Python's search for cycles, which may come in a worker of another pool, where they are not children."""
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        source = shapes(train_images=4)
        assert len(list(source.loader(batch_size=2, workers=1))) == 2
        assert set(multiprocessing.active_children()) > before
        del source
        assert set(multiprocessing.active_children()) == before
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_start_no_threads_that_compute():
    first = next(iter(WorkerPool(Threads(), 1).run([[SampleKey(0)]])))
    assert first.targets[0]["labels"].tolist() == [2]  # one waits for a signal


def test_a_worker_begins_where_there_are_no_process_groups(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "setpgid")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name + "")  # as there, where a library needs a name
    _begin_worker(0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has sent a signal")
@pytest.mark.parametrize("number", ["-TERM", "-HUP", "-USR1"])
def test_a_worker_ends_where_its_owner_asks_and_not_with_the_whole_job(source, number):
    """SLURM and systemd send them to every process, and the trainer needs images until it has saved its state."""
    before = set(multiprocessing.active_children())
    pool = WorkerPool(source.train, 1)
    batches = pool.run([[SampleKey(index)] for index in range(14)])
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    subprocess.run(["kill", number, str(worker.pid)], check=True)
    assert len(list(batches)) == 13
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a signal")
def test_a_worker_that_was_ended_is_named(source):
    before = set(multiprocessing.active_children())
    pool, keys = WorkerPool(source.train, 1), [[SampleKey(index)] for index in range(14)]
    batches = pool.run(keys)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    time.sleep(0.5)  # nothing is raised where it does not concern
    with pytest.raises(DataError, match=rf"(?s)worker.*{worker.pid}.*train\.workers"):
        list(batches)
    assert len(list(pool.run(keys))) == 14


def rest(begun):
    leave_group()
    begun.set()
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has sent a signal")
@pytest.mark.parametrize("method", ["fork", "forkserver"])  # the second is Linux's default from Python 3.14 on
def test_a_helper_ends_where_its_owner_asks_whoever_is_its_parent(method):
    context = multiprocessing.get_context(method)
    begun = context.Event()
    process = context.Process(target=rest, args=(begun,), daemon=True)
    process.start()
    assert begun.wait(60)
    process.terminate()
    process.join(5)
    assert process.exitcode == 0
