import shutil

import pytest
import torch

from detrkit.engine.train import train
from detrkit.recipe import load_recipe
from tests.engine.small_runs import SMALL


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Toys are too small for several threads, which would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recipe():
    return load_recipe("quickstart", SMALL)


@pytest.fixture(scope="session")
def whole(recipe, tmp_path_factory):
    """A finished run, which nobody changes, and its outcome."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    outcome = train(recipe, folder)
    assert outcome.finished
    return folder, outcome


@pytest.fixture
def copy(whole, tmp_path):
    """A run that is as good as finished, to be changed."""
    return shutil.copytree(whole[0], tmp_path / "copy")
