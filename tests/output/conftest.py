"""What the tests of evaluation, prediction and pictures share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets: beside the checkout, or where DETRKIT_DATA says."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("DETRKIT_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name the folder by DETRKIT_DATA")
    return folder
