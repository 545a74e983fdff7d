"""What tests of several folders share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("detrkit", deadline=None)  # a busy machine is no fault
settings.load_profile("detrkit")

# Processes side by side (`pytest -n auto`) have a thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Float32 wherever a recipe says "auto", on any processor, in processes that tests start too: without its instructions
# bfloat16 is slow, and that is measured.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")


@pytest.fixture(autouse=True, scope="session")
def _state_of_its_own(tmp_path_factory):
    """What detrkit notes of a person's runs stays out of that person's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is not at hand."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DETRKIT_DATA", default))
    if not (folder / "bccd").is_dir():
        pytest.skip(f"no real data in {folder} (set DETRKIT_DATA to the folder that holds bccd, coco_sample, ...)")
    return folder
