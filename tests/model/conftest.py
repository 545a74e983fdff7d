"""What tests of products by oneDNN share."""

import pytest
import torch

from detrkit import onednn


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _faster(monkeypatch):
    """As on a processor where oneDNN is faster."""
    monkeypatch.setattr(onednn, "onednn_gain", lambda threads: 2.0)


@pytest.fixture(params=[True, False], ids=["faster", "slower"])
def faster(request, monkeypatch):
    """As on a processor where it is faster, and on one where it is not."""
    monkeypatch.setattr(onednn, "onednn_gain", lambda threads: 2.0 if request.param else 1.0)
    return request.param
