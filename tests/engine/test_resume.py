import errno
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detrkit.engine.distributed import Processes
from detrkit.engine.optimiser import build_optimiser, restore_optimiser
from detrkit.engine.options import TrainOptions
from detrkit.engine.train import _say_where
from detrkit.errors import CheckpointError, DataError, UserError
from detrkit.runs.checkpoint import read_state, read_weights
from detrkit.runs.history import read_metrics
from tests.engine.toys import (
    Killed,
    ToyCriterion,
    ToyDetector,
    ToySource,
    comparable_metrics,
    kill_at,
    same,
    toy_trainer,
)

# 22 images in batches of 4: 5 steps an epoch, 15 in all. EMA, dropout and log lines across the border.
OPTIONS = {"ema_decay": 0.9, "log_every": 4}


def interrupt_at(call, number=signal.SIGINT):
    def hook(calls, criterion):
        if calls == call:
            signal.raise_signal(number)

    return hook


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer = toy_trainer(folder, **OPTIONS)
    assert trainer.fit().finished
    return folder, trainer


@pytest.mark.parametrize(
    ("options", "hook", "resumes_at"),
    [
        ({"checkpoint_steps": 1}, kill_at(8), 7),  # within an epoch, a checkpoint at every step
        ({"checkpoint_steps": 3}, kill_at(9), 6),  # two steps are lost and done again
        ({}, kill_at(9), 5),  # back to the end of the epoch
        ({}, kill_at(11), 10),  # at the first step of an epoch
        ({}, interrupt_at(8), 8),  # the step in which the signal comes is finished
        ({}, interrupt_at(10, signal.SIGTERM), 10),  # at the end of an epoch, before its evaluation
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, uninterrupted, options, hook, resumes_at):
    whole_folder, whole = uninterrupted
    trainer = toy_trainer(tmp_path, hook=hook, **OPTIONS, **options)
    if hook.__qualname__.startswith("kill_at"):
        with pytest.raises(Killed):
            trainer.fit()
    else:
        outcome = trainer.fit()
        assert not outcome.finished
        assert outcome.reason in ("SIGINT", "SIGTERM")
    resumed = toy_trainer(tmp_path, detector=ToyDetector(dropout=0.3, seed=99), **OPTIONS)
    resumed.resume()
    assert resumed.at.step == resumes_at
    assert resumed.fit().finished
    assert same(whole.detector.state_dict(), resumed.detector.state_dict())
    assert same(whole.average.module.state_dict(), resumed.average.module.state_dict())
    assert comparable_metrics(tmp_path) == comparable_metrics(whole_folder)
    for name in ("weights", "ema"):
        first, second = (read_weights(f / "last" / f"{name}.safetensors")[0] for f in (whole_folder, tmp_path))
        assert same(first, second)


class BrokenSource(ToySource):
    """Whose twelfth batch cannot be read: the second of the third epoch."""

    def loader(self, *, epoch, **asked):
        for number, batch in enumerate(super().loader(epoch=epoch, **asked)):
            if (epoch, number) == (2, 1):
                raise DataError("7.jpg: cannot be read")
            yield batch


def test_what_was_trained_before_an_image_that_cannot_be_read_is_kept(tmp_path, uninterrupted):
    whole_folder, whole = uninterrupted
    trainer = toy_trainer(tmp_path, **OPTIONS)
    trainer.source = BrokenSource()
    with pytest.raises(DataError, match=r"7\.jpg: cannot be read\nOnce that is mended, go on: "):
        trainer.fit()
    resumed = toy_trainer(tmp_path, detector=ToyDetector(dropout=0.3, seed=99), **OPTIONS)
    resumed.resume()
    assert resumed.at.step == 11
    assert resumed.fit().finished
    assert same(whole.detector.state_dict(), resumed.detector.state_dict())
    assert comparable_metrics(tmp_path) == comparable_metrics(whole_folder)


@pytest.mark.parametrize(("call", "kind"), [(15, RuntimeError), (16, RuntimeError), (16, KeyboardInterrupt)])
def test_what_was_trained_before_a_step_that_fails_is_kept(tmp_path, call, kind):
    """As where a part of somebody's own fails, another process is gone while gradients are averaged, or somebody asks
    for the end twice; before a step, or after half of its pieces.
    """

    def hook(calls, criterion):
        if calls == call:
            raise kind("Connection closed by peer")

    options = {**OPTIONS, "micro_batch": 2}
    whole = toy_trainer(tmp_path / "whole", **options)
    assert whole.fit().finished
    cut = toy_trainer(tmp_path / "cut", hook=hook, **options)
    with pytest.raises(kind, match="Connection closed by peer"):
        cut.fit()
    assert "what was trained is saved, after step 7: fit(" in (tmp_path / "cut" / "log.txt").read_text()
    resumed = toy_trainer(tmp_path / "cut", detector=cut.detector, **options)  # in a notebook, say
    resumed.resume()
    assert resumed.at.step == 7
    assert resumed.fit().finished
    assert same(whole.detector.state_dict(), resumed.detector.state_dict())
    assert comparable_metrics(tmp_path / "cut") == comparable_metrics(tmp_path / "whole")


def test_a_state_between_two_steps_is_not_saved(tmp_path):
    trainer = toy_trainer(tmp_path, ema_decay=0.9)
    update = trainer.average.update

    def broken_off():
        if trainer.at.step == 7:
            raise KeyboardInterrupt
        update()

    trainer.average.update = broken_off
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert read_state(tmp_path / "last")["position"]["step"] == 5


def test_a_training_that_cannot_write_a_line_keeps_its_steps(tmp_path, monkeypatch):
    """A disk that is full for a moment: what has been trained is saved, and no half line is left to be added to."""
    opened = Path.open

    def full(path, *mode, **how):
        file = opened(path, *mode, **how)
        if path == tmp_path / "metrics.jsonl" and mode == ("a",) and path.exists() and path.stat().st_size:

            def write(line, write=file.write):
                write(line[:9])
                raise OSError(errno.ENOSPC, "No space left on device")

            file.write = write
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        toy_trainer(tmp_path).fit()
    monkeypatch.undo()
    resumed = toy_trainer(tmp_path)
    resumed.resume()
    assert resumed.at.step == 4
    assert resumed.fit().finished
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "train"] == [2, 6, 8, 10, 12, 14, 15]


class Remembering(ToyCriterion):
    """Weighs its loss by what it was before, as those do that divide by a running mean."""

    def __init__(self, hook=None):
        super().__init__(hook)
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, *given):
        losses = super().forward(*given)
        self.mean.lerp_(losses["total"].detach(), 0.1)
        self.seen += 1
        return {**losses, "total": losses["total"] / (1 + self.mean.abs())}


def test_a_criterion_goes_on_with_what_it_has_gathered(tmp_path):
    whole = toy_trainer(tmp_path / "whole", criterion=Remembering())
    assert whole.fit().finished
    with pytest.raises(Killed):
        toy_trainer(tmp_path / "cut", criterion=Remembering(kill_at(8))).fit()
    resumed = toy_trainer(tmp_path / "cut", criterion=Remembering())
    resumed.resume()
    assert resumed.criterion.seen == 5
    assert resumed.fit().finished
    assert same(resumed.detector.state_dict(), whole.detector.state_dict())
    assert same(resumed.criterion.state_dict(), whole.criterion.state_dict())
    with pytest.raises(CheckpointError, match=r"state\.pt is of another criterion: (.*\n)+.*\"mean\""):
        toy_trainer(tmp_path / "cut").resume()


def test_a_criterion_s_own_parameters_are_refused_and_not_left_untrained(tmp_path):
    criterion, detector = ToyCriterion(), ToyDetector()
    criterion.scale = torch.nn.Parameter(torch.zeros(()))
    with pytest.raises(UserError, match=r"criterion has parameters of its own, scale, .*detector\.weighing"):
        toy_trainer(tmp_path, criterion=criterion, detector=detector)
    detector.scale = criterion.scale
    assert toy_trainer(tmp_path, criterion=criterion, detector=detector).fit().finished


def test_a_resumed_run_keeps_its_momentum(tmp_path):
    options = {"optimizer": "sgd", "learning_rate": 1e-2, "clip_norm": 0.0, "checkpoint_steps": 1}
    whole = toy_trainer(tmp_path / "whole", **options)
    assert whole.fit().finished
    with pytest.raises(Killed):
        toy_trainer(tmp_path / "cut", hook=kill_at(8), **options).fit()
    resumed = toy_trainer(tmp_path / "cut", **options)
    resumed.resume()
    assert resumed.at.step == 7
    assert resumed.fit().finished
    assert same(resumed.detector.state_dict(), whole.detector.state_dict())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_moments_go_by_names_where_rates_and_decays_put_parameters_into_other_groups(kind):
    before, now = ToyDetector(), ToyDetector()
    first = build_optimiser(before, TrainOptions(optimizer=kind))
    before(torch.rand(2, 3, 4, 4)).boxes.sum().backward()  # the labels' layer has no gradient, so no moments
    first.step()
    names = [group["names"] for group in first.param_groups]
    rates = {"learning_rate": 1e-5, "backbone_learning_rate": 1e-5}  # both, as where the first is lowered
    second = build_optimiser(now, TrainOptions(optimizer=kind, decay_norms=False, **rates))
    assert [group["names"] for group in second.param_groups] != names
    restore_optimiser(second, names, first.state_dict()["state"], Path("state.pt"))
    theirs = dict(before.named_parameters())
    for name, parameter in now.named_parameters():
        assert same(second.state.get(parameter, {}), first.state.get(theirs[name], {}))
    assert {group["lr"] for group in second.param_groups} == {1e-5}
    with pytest.raises(CheckpointError, match=r"other parameters \(backbone\.bias, backbone\.weight\)"):
        restore_optimiser(build_optimiser(now, TrainOptions(freeze=("backbone",))), names, {}, Path("state.pt"))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_moments_take_the_strides_of_their_parameter(kind):
    """As where a detector has gone over to channels-last since; their numbers belong to the same weights."""
    before, now = (torch.nn.Conv2d(4, 3, 3, bias=False) for _ in range(2))
    now.load_state_dict(before.state_dict())
    now.to(memory_format=torch.channels_last)
    options = TrainOptions(optimizer=kind, learning_rate=0.1)
    first, second = (build_optimiser(module, options) for module in (before, now))

    def step(*trained):
        grad = torch.randn(3, 4, 3, 3)
        for module, optimiser in trained:
            module.weight.grad = torch.empty_like(module.weight).copy_(grad)
            optimiser.step()

    step((before, first))
    now.load_state_dict(before.state_dict())
    names = [group["names"] for group in first.param_groups]
    restore_optimiser(second, names, first.state_dict()["state"], Path("last"))
    step((before, first), (now, second))
    assert torch.allclose(before.weight, now.weight, rtol=1e-6, atol=1e-7)


def test_killed_in_evaluation(tmp_path):
    trainer = toy_trainer(tmp_path)
    trainer._evaluate = lambda *_, **__: (_ for _ in ()).throw(Killed())
    with pytest.raises(Killed):
        trainer.fit()
    resumed = toy_trainer(tmp_path)
    resumed.resume()
    assert (resumed.at.step, resumed.at.evaluated) == (5, 0)
    resumed.fit()
    steps = [line["step"] for line in comparable_metrics(tmp_path) if line["kind"] == "evaluate"]
    assert steps == [5, 10, 15]


def test_what_a_kill_left_beside_the_last_checkpoint_of_all_goes(tmp_path):
    """A training that is over replaces no checkpoint any more, which would remove it."""
    assert toy_trainer(tmp_path, aps=[0.5]).fit().finished
    for name in ("last", "best"):
        shutil.copytree(tmp_path / name, tmp_path / f".{name}.old")
        (tmp_path / f".{name}.7.tmp").mkdir()
    resumed = toy_trainer(tmp_path)
    resumed.resume()
    assert resumed.fit().finished
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith((".last", ".best"))]
    assert (tmp_path / "last/state.pt").is_file()
    assert (tmp_path / "best/state.pt").is_file()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        toy_trainer(tmp_path).resume()


@pytest.mark.parametrize("killed_at", [8, 12])
def test_another_batch_is_refused_with_two_ways_out(tmp_path, killed_at):
    with pytest.raises(Killed):
        toy_trainer(tmp_path, hook=kill_at(killed_at), checkpoint_steps=1).fit()
    said = r"5 steps, but an epoch has 11 now, of 2 images by 1 process.*train\.micro_batch .*train\.init_from="
    with pytest.raises(CheckpointError, match=said):
        toy_trainer(tmp_path, batch_size=2).resume()


def test_a_changed_rate_counts_after_resume(tmp_path):
    with pytest.raises(Killed):
        toy_trainer(tmp_path, hook=kill_at(8)).fit()
    resumed = toy_trainer(tmp_path, learning_rate=0.5)
    resumed.resume()
    assert sorted(group["full_rate"] for group in resumed.optimiser.param_groups) == [0.001, 0.5]


def test_time_limit(tmp_path):
    outcome = toy_trainer(tmp_path, max_minutes=1e-9).fit()
    assert (outcome.step, outcome.reason) == (1, "train.max_minutes")


class Beside(Processes):
    """A process among others, of which one was asked to stop."""

    def sum(self, tensor):
        if tensor.dim():
            tensor[-1] += 1  # "stop", the last number of a step
        return tensor


def test_a_stop_that_another_process_was_asked_for_has_a_reason(tmp_path):
    outcome = toy_trainer(tmp_path, here=Beside()).fit()
    assert (outcome.finished, outcome.step, outcome.reason) == (False, 1, "a signal to another process")


class Second(Processes):
    """One that does not write and print."""

    is_first = False


def test_the_first_process_alone_looks_at_the_clock(tmp_path):
    # The limit of another one, a moment before its own, would leave the first without the reason that it tells.
    assert toy_trainer(tmp_path / "other", here=Second(), max_minutes=1e-9).fit().finished
    first = toy_trainer(tmp_path / "first", max_minutes=1e-9).fit()
    assert (first.finished, first.reason) == (False, "train.max_minutes")


def test_what_goes_on_with_a_run_is_said_by_what_ended_it(tmp_path):
    def said(epochs, patience):
        resumed = toy_trainer(tmp_path, epochs=epochs, patience=patience)
        resumed.resume()
        lines = []
        _say_where(resumed, SimpleNamespace(say=lines.append), is_begun=True)
        return lines[1:]

    toy_trainer(tmp_path, aps=[0.2, 0.1], epochs=8, patience=1).fit()
    assert said(9, 1) == ["nothing is left to do; a larger train.patience, or 0, goes on with the run"]
    assert said(2, 0) == ["nothing is left to do; a larger train.epochs goes on with the run"]
    assert said(9, 0) == []
