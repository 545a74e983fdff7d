"""Losses, gradients and weights that are no numbers any more: a training stops, and what is saved is sound."""

import pytest
import torch

from detrkit.engine.interrupt import StopRequest
from detrkit.engine.soundness import NotFiniteError
from detrkit.errors import CheckpointError, UserError
from detrkit.runs.checkpoint import read_weights
from tests.engine.toys import ToyDetector, same, toy_trainer


def test_a_loss_that_is_not_finite_stops_with_a_sound_state(tmp_path):
    def poison(calls, criterion):
        criterion.factor = float("nan") if calls == 7 else 1.0

    trainer = toy_trainer(tmp_path, hook=poison, checkpoint_steps=1)
    with pytest.raises(UserError, match=r"step 7 of 15: total nan, box .*\nimages of this step: \d+, ") as caught:
        trainer.fit()
    assert "is saved: fit(..., resume=True) goes on after it" in str(caught.value)
    assert "A lower train.learning_rate or a longer train.warmup_steps may help." in str(
        caught.value
    )  # in fp32 already
    weights = read_weights(tmp_path / "last" / "weights.safetensors")[0]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    resumed = toy_trainer(tmp_path)
    resumed.resume()
    assert resumed.at.step == 7
    assert resumed.fit().finished


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_bad_step_changes_neither_weights_nor_moments(tmp_path, optimizer):
    hook = lambda calls, criterion: setattr(criterion, "factor", 1.0)  # noqa: E731
    trainer = toy_trainer(tmp_path, hook=hook, optimizer=optimizer)
    (batch, *_) = trainer.source.loader(split="train", batch_size=4, epoch=0, seed=0, workers=0)
    trainer._step(batch, 1.0, StopRequest())
    weights = {name: tensor.clone() for name, tensor in trainer.detector.state_dict().items()}
    moments = [{name: value.clone() for name, value in state.items()} for state in trainer.optimiser.state.values()]
    trainer.criterion.hook = lambda calls, criterion: setattr(criterion, "factor", float("inf"))
    trainer._step(batch, 1.0, StopRequest())
    assert same(weights, trainer.detector.state_dict())
    for before, after in zip(moments, trainer.optimiser.state.values(), strict=True):
        assert same(before, after)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_weights_that_an_update_made_infinite_are_not_saved(tmp_path, ema_decay):
    toy_trainer(tmp_path, epochs=1).fit()
    before = {path: path.read_bytes() for name in ("last", "best") for path in (tmp_path / name).iterdir()}
    diverging = toy_trainer(tmp_path, ema_decay=ema_decay, checkpoint_steps=1)
    diverging.resume()
    for group in diverging.optimiser.param_groups:
        group["full_rate"] = 1e39
    said = r"has diverged: after step 6 of 15 .*last is of step 5 and stays as it was.*rate or a longer \S+ may help"
    with pytest.raises(NotFiniteError, match=said):
        diverging.fit()
    assert {path: path.read_bytes() for path in before} == before


def test_moments_that_are_not_finite_are_not_gone_on_with(tmp_path):
    toy_trainer(tmp_path, epochs=1).fit()
    path = tmp_path / "last" / "state.pt"
    state = torch.load(path, weights_only=True)
    state["optimiser"]["state"][0]["exp_avg"][...] = float("inf")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"last cannot be gone on from: exp_avg of \S+ are not finite"):
        toy_trainer(tmp_path).resume()


def test_a_part_may_keep_infinities_of_its_own(tmp_path):
    detector = ToyDetector()
    detector.register_buffer("far", torch.tensor([float("-inf")]))
    assert toy_trainer(tmp_path, detector=detector, epochs=1).fit().finished
