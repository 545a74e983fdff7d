"""Evaluations of a training: when they are due, which is the best, and when patience is lost."""

from types import SimpleNamespace

import pytest
import torch

from detrkit.runs.checkpoint import read_state, read_weights
from detrkit.runs.history import Evaluation, Run, read_metrics
from tests.engine.toys import Killed, comparable_metrics, kill_at, same, toy_trainer


def test_resume_keeps_the_best(tmp_path):
    trainer = toy_trainer(tmp_path, aps=[0.5], hook=kill_at(7))
    with pytest.raises(Killed):
        trainer.fit()
    best = read_weights(tmp_path / "best" / "weights.safetensors")[0]
    resumed = toy_trainer(tmp_path, aps=[0.3, 0.4])
    resumed.resume()
    outcome = resumed.fit()
    assert (outcome.best_ap, outcome.best_step) == (0.5, 5)
    assert same(best, read_weights(tmp_path / "best" / "weights.safetensors")[0])


def test_best_moves_when_it_is_better(tmp_path):
    toy_trainer(tmp_path, aps=[0.2, 0.6, 0.4]).fit()
    assert read_state(tmp_path / "best")["position"]["step"] == 10
    assert read_state(tmp_path / "best")["position"]["best_ap"] == 0.6
    assert read_state(tmp_path / "last")["position"]["step"] == 15


def test_patience_ends_a_run_that_gets_no_better_and_a_resume_knows_it(tmp_path):
    aps = [0.2, 0.5, 0.4, 0.45, 0.6]
    outcome = toy_trainer(tmp_path, aps=aps, epochs=8, patience=2).fit()
    assert (outcome.finished, outcome.step, outcome.best_ap) == (True, 20, 0.5)  # two evaluations after the second
    resumed = toy_trainer(tmp_path, aps=[0.9], epochs=8, patience=2)
    resumed.resume()
    outcome = resumed.fit()
    assert (outcome.finished, outcome.step, outcome.best_ap) == (True, 20, 0.5)
    longer = toy_trainer(tmp_path, aps=[0.9, 0.1, 0.1, 0.1], epochs=8, patience=3)
    longer.resume()
    outcome = longer.fit()
    assert (outcome.finished, outcome.step, outcome.best_ap) == (True, 40, 0.9)
    every = toy_trainer(tmp_path / "b", aps=[0.3, 0.2, 0.2], epochs=8, patience=1, evaluate_every=2).fit()
    assert (every.step, every.best_step) == (20, 10)


@pytest.mark.parametrize("is_old", [False, True])
def test_patience_counts_evaluations_however_many_epochs_lie_between(tmp_path, is_old):
    toy_trainer(tmp_path, aps=[0.5, 0.4, 0.4], epochs=3, patience=4).fit()  # two without a better AP
    if is_old:  # as runs wrote it that counted steps
        path = tmp_path / "last" / "state.pt"
        state = torch.load(path, weights_only=True)
        assert state["position"].pop("waited") == 2
        torch.save(state, path)
    rarer = toy_trainer(tmp_path, aps=[0.3, 0.3, 0.3], epochs=20, patience=4, evaluate_every=5)
    rarer.resume()
    assert rarer.fit().step == 50  # after epochs 5 and 10
    again = toy_trainer(tmp_path, aps=[0.3, 0.3], epochs=20, patience=5, evaluate_every=1)
    again.resume()
    assert again.fit().step == 55
    lines = [line for line in comparable_metrics(tmp_path) if line["kind"] == "evaluate"]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 5, 10, 11]


def test_a_run_is_finished_where_its_trainer_lost_patience(tmp_path):
    toy_trainer(tmp_path, aps=[0.5, 0.4, 0.4], epochs=9, patience=3, evaluate_every=2).fit()  # epochs 2, 4, 6, 8
    shown = read_metrics(tmp_path)
    evaluations = tuple(Evaluation(e["epoch"], e["step"], None, e) for e in shown if e["kind"] == "evaluate")
    assert [one.epoch for one in evaluations] == [2, 4, 6, 8]
    for patience, every, finished in [(3, 1, True), (3, 9, True), (4, 1, False)]:
        train = SimpleNamespace(patience=patience, evaluate_every=every, epochs=9)
        recipe = SimpleNamespace(section={"train": train}.get)
        assert Run(tmp_path, recipe, evaluations).finished == finished


def test_evaluations_without_a_number(tmp_path):
    outcome = toy_trainer(tmp_path, aps=[None, 0.2, None]).fit()
    assert (outcome.best_ap, outcome.best_step) == (0.2, 10)


def test_evaluation_every_second_epoch_and_at_the_end(tmp_path):
    toy_trainer(tmp_path, evaluate_every=2).fit()
    lines = comparable_metrics(tmp_path)
    assert [line["epoch"] for line in lines if line["kind"] == "evaluate"] == [2, 3]
