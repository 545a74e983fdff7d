"""What tests of several folders share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is not at hand."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DETRKIT_DATA", default))
    if not (folder / "bccd").is_dir():
        pytest.skip(f"no real data in {folder} (set DETRKIT_DATA to the folder that holds bccd, coco_sample, ...)")
    return folder
