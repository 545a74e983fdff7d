"""A GPU that has no memory for a step: nothing is lost, and it is said what needs less."""

import weakref

import pytest
import torch

from detrkit.errors import UserError
from tests.engine.toys import ToyDetector, toy_trainer

SAID = "CUDA out of memory. Tried to allocate 1.46 GiB."


class Activations:
    """Stands for what a step holds on the device."""


def no_memory_at(call, held):
    def hook(calls, criterion):
        if calls == call:
            activations = Activations()
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError(SAID)

    return hook


def test_what_was_trained_is_saved_and_goes_on_in_pieces(tmp_path, monkeypatch):
    options = {"detector": ToyDetector(), "batch_size": 8, "epochs": 2}
    held, free = [], []
    trainer = toy_trainer(tmp_path / "run", hook=no_memory_at(4, held), **options)
    save = trainer.checkpoints.save

    def saved(*args, **kwargs):
        free.append([ref() is None for ref in held] == [True])
        save(*args, **kwargs)

    trainer.checkpoints.save = saved
    with pytest.raises(
        UserError, match=r"step 4 of 4 .*8 images of up to 5 x 5 pixels.*\n.*micro_batch=4(.*\n)+.*1\.46"
    ):
        trainer.fit()
    assert free[-1]  # the step's own memory, before a checkpoint asks for some
    assert all(parameter.grad is None for parameter in trainer.detector.parameters())

    on = toy_trainer(tmp_path / "run", micro_batch=4, **options)
    on.resume()
    assert on.at.step == 3
    assert on.fit().finished
    whole = toy_trainer(tmp_path / "whole", **options | {"detector": ToyDetector()})
    whole.fit()
    for one, other in zip(on.detector.parameters(), whole.detector.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_first_step_leaves_no_checkpoint_and_one_image_no_piece(tmp_path):
    trainer = toy_trainer(tmp_path, hook=no_memory_at(1, []), micro_batch=1)
    with pytest.raises(UserError, match=r"step 1 of 15 .*1 image of up to .*\nIt takes one image at a time already"):
        trainer.fit()
    assert not (tmp_path / "last").exists()


def test_layers_that_need_not_keep_what_they_compute_are_named(tmp_path):
    class Layered(ToyDetector):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = (torch.nn.ModuleList([torch.nn.Sequential(torch.nn.ReLU())]) for _ in "12")

    trainer = toy_trainer(tmp_path, hook=no_memory_at(1, []), detector=Layered(), recompute=("encoder",))
    with pytest.raises(UserError, match=r"more time: 'train\.recompute=\[\"decoder\"\]'\n"):
        trainer.fit()
