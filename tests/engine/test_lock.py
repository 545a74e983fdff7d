"""The lock of a run's folder between processes."""

import os
import signal
import sys
import time

import pytest

from detrkit.runs.lock import HANDED_OVER, locked, take_lock


@pytest.mark.skipif(sys.platform == "win32", reason="has no such lock")
def test_a_lock_is_handed_over_and_not_kept_by_forks(tmp_path, monkeypatch):
    lock = take_lock(tmp_path)
    assert take_lock(tmp_path) is None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # as a worker of a loader, which may live on
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    try:
        monkeypatch.setenv(HANDED_OVER, str(os.dup(lock.fileno())))
        with locked(tmp_path):
            lock.close()
            assert take_lock(tmp_path) is None
        again = take_lock(tmp_path)
        assert again is not None
        again.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
