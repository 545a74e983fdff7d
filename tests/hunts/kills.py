"""Kills a training, and each resume of it, by SIGKILL; what is resumed at last has to be as if nothing had happened.

At chosen moments: before a call on a file of the run, each of them in turn. At random ones: after some time, which is
where writers that tell nobody what they call (torch's and safetensors') are met.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from detrkit.engine.train import train
from detrkit.recipe import load_recipe
from detrkit.runs.checkpoint import find_folder, read_weights
from detrkit.runs.history import read_metrics
from detrkit.runs.recipes import run_recipe
from detrkit.writing import write_bytes
from tests.engine.toys import toy_trainer

from .calls import watch_calls
from .hunting import SURVIVED, Case, Hunt, in_a_child
from .small_run import SMALL_RUN

RANDOM = 40  # of each kind


def _go_on_with_a_toy(run: Path, **options: object) -> None:
    """A detector of a hundred parameters in the same trainer: milliseconds."""
    trainer = toy_trainer(run, aps=[], draw=_draw, **options)
    trainer._evaluate = _evaluate
    if find_folder(run / "last") is not None:
        trainer.resume()
    else:
        trainer.run.rewind_metrics(0)
    assert trainer.fit().finished


def _evaluate(detector: torch.nn.Module, progress: object) -> SimpleNamespace:
    """An AP of the weights alone, which rises and falls over a training."""
    total = sum(float(parameter.detach().double().sum()) for parameter in detector.parameters())
    return SimpleNamespace(stats={"AP": total * 7.3 % 1, "AP50": None, "AP75": None})


def _draw(detector: torch.nn.Module, folder: Path) -> list[Path]:
    write_bytes(folder / "1.png", b"a picture")
    return []


def _go_on_with_a_run(run: Path, *overrides: str) -> None:
    """What a person would do: begin the run, or go on with it where there is one."""
    if (run / "recipe.toml").exists():
        train(run_recipe(run), run, resume=True)
    else:
        train(load_recipe("quickstart", [*SMALL_RUN, *overrides]), run)


KINDS: dict[str, Callable[[Path], None]] = {
    "averaged": partial(_go_on_with_a_toy, checkpoint_steps=1, ema_decay=0.9),
    "not averaged": partial(_go_on_with_a_toy, checkpoint_steps=2),
    "a checkpoint an epoch": partial(_go_on_with_a_toy, ema_decay=0.9, optimizer="sgd", learning_rate=1e-3),
    "a whole run": lambda run: _go_on_with_a_run(run, "train.checkpoint_steps=1", "evaluate.pictures=1"),
}


def cases(place: Path) -> Iterator[Case]:
    """Kills before each call and, of the resume, before another; and after random times, up to three in turn."""
    for kind, go_on in KINDS.items():
        whole = place / kind.replace(" ", "_")
        calls, seconds = in_a_child(partial(_count_calls, whole, go_on))
        for number in range(1, calls + 1):
            again = random.randint(1, calls)
            yield Case(f"{kind}: before call {number}, then {again}", partial(_chosen, whole, go_on, (number, again)))
        for number in range(1, RANDOM + 1):
            after = [random.uniform(0, seconds) for _ in range(random.randint(1, 3))]
            told = ", ".join(f"{one:.3f} s" for one in after)
            yield Case(f"{kind}: {number}, after {told}", partial(_random, whole, go_on, after))


def _chosen(whole: Path, go_on: Callable[[Path], None], moments: Sequence[int], folder: Path) -> str:
    run = folder / "run"
    for moment in moments:
        in_a_child(partial(_train_until, run, go_on, moment))
    return _finish(whole, run, go_on)


def _random(whole: Path, go_on: Callable[[Path], None], after: Sequence[float], folder: Path) -> str:
    run = folder / "run"
    for seconds in after:
        in_a_child(lambda: go_on(run), kill_after=seconds)
    return _finish(whole, run, go_on)


def _finish(whole: Path, run: Path, go_on: Callable[[Path], None]) -> str:
    go_on(run)
    for name in ("last/weights", "last/ema", "best/weights", "best/ema"):
        path, other = whole / f"{name}.safetensors", run / f"{name}.safetensors"
        assert path.exists() == other.exists(), f"{name} is here or there alone"
        if path.exists():
            ours, theirs = read_weights(path)[0], read_weights(other)[0]
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), f"{name} is not the same"
    assert _records(run) == _records(whole), f"records: {_records(run)} should be {_records(whole)}"
    # A single small file's temporary one may stay behind a kill; checkpoints, which are large, may not.
    left = sorted(path.name for path in run.iterdir() if path.is_dir() and path.name.endswith((".tmp", ".old")))
    assert not left, f"left over: {left}"
    return SURVIVED


def _records(run: Path) -> list[dict]:
    timed = ("images_per_second", "memory_gb", "minutes")
    return [{key: value for key, value in line.items() if key not in timed} for line in read_metrics(run)]


def _count_calls(whole: Path, go_on: Callable[[Path], None]) -> tuple[int, float]:
    calls = [0]
    watch_calls(whole, lambda number, _: calls.__setitem__(0, number))
    began = time.monotonic()
    go_on(whole)
    return calls[0], time.monotonic() - began


def _train_until(run: Path, go_on: Callable[[Path], None], moment: int) -> None:
    watch_calls(run, lambda number, _: os.kill(os.getpid(), signal.SIGKILL) if number == moment else None)
    go_on(run)


HUNT = Hunt("kills", "kills survived", cases)
