import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Toys are too small for several threads, which would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
