"""Which images make up which batch, and the workers that prepare them.

A batch depends on the seed, the epoch and its place, on nothing else: not on the number of workers, not on
what ran before. That is what makes resuming exact.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from torch.utils import data

from detrkit.c_memory import keep_one_heap
from detrkit.data.batch import Batch, Example, collate
from detrkit.errors import DataError

_ORDER = 1  # keeps the order's generator apart from the samples' (see dataset.py)


class SampleKey(NamedTuple):
    """Names one sample of a training: the image, and what its augmentation draws from."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which a key has no use for
    epoch: int = 0
    seed: int = 0
    repeat: int = 0
    """how often the image has come in this epoch before; each time it is augmented anew"""


def plan_batches(
    length: int,
    batch_size: int,
    *,
    train: bool,
    epoch: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    weights: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    pool: int = 0,
) -> list[list[int]]:
    """The images of each batch of an epoch for one of ``world`` processes; of a repeated one image + k * ``length``.

    Training: a new order in each epoch; the k-th batches of all processes together are the k-th batch that
    one process would have with ``batch_size * world``; an incomplete last batch is left out, unless it is
    the only one. With ``weights`` [length] an epoch is as long, and has each image about as often as its weight is to
    the mean: rounded up or down, by a draw of the epoch; k counts how often it has come before. With ``sizes``
    [length, 2], those that the images will have, every ``pool`` batches' images in a row are divided into batches, and
    these between the processes, so that images of like size are together. Otherwise: every image once, every
    ``world``-th for each process. Raises ``ValueError`` for a batch of no images or a rank beyond the processes.
    """
    if batch_size < 1 or not 0 <= rank < world:
        raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}")
    if not train:
        mine = list(range(rank, length, world))
        return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    rng = np.random.default_rng([_ORDER, seed, epoch])
    if weights is None:
        order = rng.permutation(length)
    else:
        total = np.cumsum(weights)
        places = (np.arange(length) + rng.random()) * (total[-1] / length)  # one draw, evenly spaced
        order = rng.permutation(np.searchsorted(total[:-1], places, side="right"))
        order = order + length * _earlier(order)
    step = batch_size * world
    if length < step:
        # Fewer images than processes: some see the same ones, as every process needs a batch.
        order = np.resize(order, max(length, world))
        return [np.array_split(order, world)[rank].tolist()]
    order = order[: length // step * step]
    if sizes is None or pool < 1:
        return order.reshape(-1, world, batch_size)[:, rank].tolist()
    scale = np.log(np.maximum(sizes, 1))
    pools = [order[start : start + pool * step] for start in range(0, len(order), pool * step)]
    order = np.concatenate([_like_together(part, scale[part % length], (step, batch_size, 1)) for part in pools])
    chunks = order.reshape(-1, world, batch_size)[rng.permutation(len(order) // step)]
    return chunks[:, rank].tolist()


def _earlier(order: np.ndarray) -> np.ndarray:
    """[I] how many equal ones stand before each."""
    together = np.argsort(order, kind="stable")
    starts, counts = np.unique(order[together], return_index=True, return_counts=True)[1:]
    found = np.empty_like(order)
    found[together] = np.arange(len(order)) - np.repeat(starts, counts)
    return found


def _like_together(order: np.ndarray, scale: np.ndarray, parts: tuple[int, ...]) -> np.ndarray:
    """``order`` [I] in halves, and these again, along whichever of height and width ``scale`` [I, 2] differs more.

    Halves are multiples of the first of ``parts`` that is smaller than what is divided.
    """
    part = next((size for size in parts if size < len(order)), None)
    if part is None:
        return order
    along = np.argsort(scale[:, scale.std(0).argmax()], kind="stable")
    middle = max(1, len(order) // part // 2) * part
    halves = along[:middle], along[middle:]
    return np.concatenate([_like_together(order[half], scale[half], parts) for half in halves])


class _Guarded(data.Dataset):
    """Hands a ``DataError`` over as a value: raised in a worker, it would arrive wrapped in a traceback."""

    def __init__(self, dataset: data.Dataset):
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> Example | DataError:
        try:
            return self.dataset[key]
        except DataError as error:
            return error


def _collate(examples: Sequence[Example | DataError]) -> Batch | DataError:
    fault = next((item for item in examples if isinstance(item, DataError)), None)
    return fault or collate([item for item in examples if not isinstance(item, DataError)])


class _Asked(data.Sampler[list[SampleKey]]):
    """The batches that a pool was asked for last.

    No pool is its own sampler: the two would hold one another, and the workers of one that nobody needs any more would
    end whenever Python collects cycles, in a worker of another, say, to which they are not known.
    """

    def __init__(self) -> None:
        self.keys: list[list[SampleKey]] = []

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class WorkerPool:
    """The workers of one data set, kept from epoch to epoch: starting them imports torch on some systems."""

    def __init__(self, dataset: data.Dataset, workers: int):
        self._dataset = dataset
        self._workers = workers
        self._asked = _Asked()
        self._loader: data.DataLoader | None = None
        self._busy = False

    @property
    def images(self) -> int:
        """How many the data set has."""
        return len(self._dataset)  # type: ignore[arg-type]  # torch's base class has no length

    def run(self, keys: list[list[SampleKey]]) -> Iterator[Batch]:
        """Prepare one batch for each list of keys. A second run at the same time gets workers of its own.

        Raises:
            DataError: an image cannot be read, or a worker was ended from outside
        """
        if self._busy:
            yield from WorkerPool(self._dataset, self._workers).run(keys)
            return
        self._busy = True
        try:
            if self._loader is None:
                self._loader = data.DataLoader(
                    _Guarded(self._dataset),
                    batch_sampler=self._asked,
                    collate_fn=_collate,
                    num_workers=self._workers,
                    persistent_workers=self._workers > 0,
                    worker_init_fn=_begin_worker,
                    # Where a detector is on a GPU by now: pinning alone would take memory of one that nobody asked for.
                    pin_memory=torch.cuda.is_initialized(),
                )
            self._asked.keys = keys
            with _no_news_of_ends():
                batches = iter(self._loader)
            for batch in batches:
                if isinstance(batch, DataError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self._loader = None  # the next run has other workers
            raise DataError(
                f"{str(error).strip()}: a process that reads images. Where memory ran out, fewer of them take less "
                "(train.workers)"
            ) from error
        finally:
            self._busy = False


@contextmanager
def _no_news_of_ends() -> Iterator[None]:
    """Torch tells of a worker's end by a signal, which raises wherever a training stands: in the middle of a step, say.

    Within this it does not begin to; whoever waits for that worker's batch is told all the same, within five seconds.
    """
    number = getattr(signal, "SIGCHLD", None)
    before = signal.getsignal(number) if number is not None else None
    yield
    if number is not None and before is not None and signal.getsignal(number) is not before:
        signal.signal(number, before)


class Loader:
    """The batches of one epoch, or what is left of them after ``skip``. ``len()`` counts those left.

    Raises ``ValueError`` if more are to be skipped than there are.
    """

    def __init__(self, pool: WorkerPool, batches: list[list[int]], *, epoch: int, seed: int, skip: int = 0):
        if skip > len(batches):
            raise ValueError(f"skip is {skip}, but the epoch has {len(batches)} batches")
        self._pool = pool
        images = pool.images
        self._keys = [[SampleKey(n % images, epoch, seed, n // images) for n in batch] for batch in batches[skip:]]

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Batch]:
        return self._pool.run(self._keys)


def _begin_worker(worker: int) -> None:
    """Let a worker go on whatever the trainer is asked; one whose trainer is gone ends by itself."""
    leave_group()
    keep_one_heap()


def leave_group() -> None:
    """Let this process go on where the trainer is to stop: it saves its state first, and ends its helpers itself.

    Ctrl-C goes to the trainer's group, SIGTERM and SIGUSR1 often to every process of a job (SLURM, systemd), and SIGHUP
    to all of a session that systemd ends: of this one only the trainer's own SIGTERM counts. Windows has no such
    groups, and macOS does not tell who sends.
    """
    if sys.platform != "win32":
        os.setpgid(0, 0)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})
        owner = parent_process()  # the one that asked for this process, where a fork server is between the two
        Thread(target=_end_with, args=(owner.pid if owner else os.getppid(),), daemon=True).start()


def _end_with(owner: int) -> None:
    """End this process as soon as `owner` asks for it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != owner:
        pass
    os._exit(0)
