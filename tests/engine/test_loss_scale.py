"""Training in float16: gradients of a scaled loss, beside PyTorch's `GradScaler`. On a CPU, where nobody else may."""

import json
import math
from itertools import accumulate

import pytest
import torch

from detrkit.engine import loss_scale
from detrkit.engine.loss_scale import LossScale
from detrkit.engine.optimiser import clip_and_step
from detrkit.engine.soundness import NotFiniteError
from detrkit.engine.train import train
from detrkit.errors import CheckpointError
from detrkit.evaluation import precision
from detrkit.recipe import load_recipe
from tests.engine.small_runs import SMALL
from tests.engine.toys import Killed, ToyDetector, kill_at, same, toy_trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _float16_on_a_cpu(monkeypatch):
    monkeypatch.setattr(precision, "has_fp16", lambda device: True)


def lines(folder):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").open()) if line["kind"] == "train"]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("clip_norm", [0.0, 0.1, 1e6])
def test_an_update_is_that_of_a_grad_scaler(optimizer, clip_norm, monkeypatch):
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROW", 2)
    torch.manual_seed(0)
    first = torch.nn.Linear(5, 3)
    second = torch.nn.Linear(5, 3)
    second.load_state_dict(first.state_dict())
    ours, theirs = (optimizer(one.parameters(), lr=0.1, fused=True) for one in (first, second))
    scale, scaler = LossScale(CPU, "fp16"), torch.amp.GradScaler("cpu", growth_interval=2)
    for step in range(9):
        factor = math.inf if step in (3, 4, 6) else 1.0  # what a scaled gradient is that float16 does not hold
        given = torch.randn(4, 5)
        (scale.scaled((first(given) ** 2).mean()) * factor).backward()
        norm = clip_and_step(ours, clip_norm, scale.value)
        scale.update(norm)
        (scaler.scale((second(given) ** 2).mean()) * factor).backward()
        scaler.unscale_(theirs)
        expected = torch.nn.utils.clip_grad_norm_(second.parameters(), clip_norm or math.inf)
        scaler.step(theirs)
        scaler.update()
        theirs.zero_grad()
        assert norm.isfinite() == expected.isfinite() == (factor == 1)
        if factor == 1:
            assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
        assert scale.value.item() == scaler.get_scale()
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)
    assert scale.value.item() == 2.0**15  # up at step 2, down at 4, 5 and 7, up at 9


def test_a_scale_has_bounds():
    scale = LossScale(CPU, "fp16")
    for _ in range(40):
        scale.update(torch.tensor(math.nan))
    assert scale.value.item() == 1
    scale.value.fill_(loss_scale.LARGEST)
    for _ in range(loss_scale.STEPS_TO_GROW):
        scale.update(torch.tensor(1.0))
    assert scale.value.item() == loss_scale.LARGEST


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_other_precisions_have_none(name):
    scale = LossScale(CPU, name)
    loss = torch.ones(())
    assert scale.scaled(loss) is loss
    scale.update(torch.tensor(math.nan))
    assert (scale.value, scale.numbers(), scale.state()) == (None, {}, {})


def test_a_gradient_too_large_for_float16_is_left_out_and_the_scale_halved(tmp_path):
    trainer = toy_trainer(tmp_path, precision="fp16", detector=ToyDetector(), log_every=1)
    before = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
    trainer.detector.label.weight.register_hook(lambda gradient: gradient * (1 if gradient.abs().max() < 1e3 else 1e99))
    assert trainer.fit().finished
    found = lines(tmp_path)
    assert len(found) == 15
    count = sum(line["left_out"] for line in found)
    assert 2 <= count <= 10
    halved = list(accumulate([line["left_out"] for line in found], initial=0))
    assert [line["loss_scale"] for line in found] == [2.0 ** (16 - times) for times in halved[:-1]]
    assert [line["norm"] is None for line in found] == [bool(line["left_out"]) for line in found]
    assert not same(before, trainer.detector.state_dict())
    assert trainer.optimiser.state[trainer.detector.box.weight]["step"].item() == 15 - count


def test_one_that_is_not_finite_without_a_scale_ends_the_training(tmp_path):
    trainer = toy_trainer(tmp_path, precision="fp16", epochs=9)
    trainer.detector.label.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NotFiniteError, match=r"step 17 of 45: .* norm nan(.|\n)*train\.precision=fp32 may help"):
        trainer.fit()
    assert lines(tmp_path)[0]["left_out"] == 2


def test_a_loss_that_is_not_finite_ends_it_at_once(tmp_path):
    trainer = toy_trainer(tmp_path, precision="fp16", hook=lambda calls, one: setattr(one, "factor", math.inf))
    with pytest.raises(NotFiniteError, match=r"step 1 of 15: total inf, box [\d.]+, class_error \S+; gradient"):
        trainer.fit()


def test_a_resumed_training_is_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROW", 4)
    whole = toy_trainer(tmp_path / "whole", precision="fp16")
    whole.fit()
    with pytest.raises(Killed):
        toy_trainer(tmp_path / "cut", precision="fp16", hook=kill_at(8), checkpoint_steps=1).fit()
    cut = toy_trainer(tmp_path / "cut", precision="fp16")
    cut.resume()
    assert (cut.at.step, cut._scale.value.item()) == (7, lines(tmp_path / "whole")[3]["loss_scale"])
    cut.fit()
    assert same(whole.detector.state_dict(), cut.detector.state_dict())
    assert cut._scale.state() == whole._scale.state()


@pytest.mark.parametrize(("before", "after"), [("fp16", "fp32"), ("fp32", "fp16")])
def test_a_precision_may_change_when_a_run_is_resumed(tmp_path, before, after):
    toy_trainer(tmp_path, precision=before, epochs=1).fit()
    on = toy_trainer(tmp_path, precision=after)
    on.resume()
    assert on._scale.state() == ({"value": 2.0**16, "sound": 0} if after == "fp16" else {})
    assert on.fit().finished


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ({"value": 0.0, "sound": 0}, r"loss_scale\.value is 0\.0, not 1 or more"),
        ({"value": 2.0, "sound": -1}, r"loss_scale\.sound is -1"),
        ({"value": math.nan, "sound": 1}, r"loss_scale\.value is nan"),
        ({"value": 2.0}, r"loss_scale\.sound is absent"),
        (3, "loss_scale is 3, not a table"),
    ],
)
def test_a_damaged_scale_is_named(tmp_path, damaged, said):
    toy_trainer(tmp_path, precision="fp16", epochs=1).fit()
    path = tmp_path / "last" / "state.pt"
    torch.save(torch.load(path, weights_only=True) | {"loss_scale": damaged}, path)
    with pytest.raises(CheckpointError, match=f"state.pt is damaged: {said}"):
        toy_trainer(tmp_path, precision="fp16").resume()


def test_a_recipe_trains_in_float16_much_as_in_float32(tmp_path):
    found = {}
    for name in ("fp32", "fp16"):
        recipe = load_recipe("quickstart", [*SMALL, f"train.precision={name}", "train.epochs=1", "train.log_every=1"])
        assert train(recipe, tmp_path / name).finished
        found[name] = lines(tmp_path / name)
    for exact, rough in zip(*found.values(), strict=True):
        assert rough["loss"] == pytest.approx(exact["loss"], rel=5e-3)
    assert found["fp16"][0]["norm"] == pytest.approx(found["fp32"][0]["norm"], rel=2e-2)
