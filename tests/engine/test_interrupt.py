import os
import signal
import sys

import pytest

from detrkit.engine import interrupt
from detrkit.engine.interrupt import stop_on_signals


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A shell starts jobs in the background with SIGINT ignored, and the tests with them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_one_request_may_arrive_twice():
    with stop_on_signals() as request:
        assert request.reason is None
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert request.reason == "SIGINT"


def test_an_impatient_person_is_heard(monkeypatch):
    monkeypatch.setattr(interrupt, "SAME_REQUEST", -1.0)
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_first_request_is_answered(capfd, monkeypatch):
    """Whoever sees nothing for the minutes of an evaluation asks again, which ends it at once."""
    with stop_on_signals(tells=True):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "\nSIGINT: ends and saves after what it is at; once more ends it at once\n"
    monkeypatch.setattr("os.write", lambda *_: os.close(-1))
    with stop_on_signals(tells=True) as request:
        signal.raise_signal(signal.SIGINT)
    assert request.reason == "SIGINT"


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signal")
def test_a_job_that_will_be_over_soon_asks_for_the_end():
    """As SLURM does with `--signal=USR1@120`, to every process of the job. Left to itself it ends a process at once."""
    with stop_on_signals() as request:
        signal.raise_signal(signal.SIGUSR1)
        assert request.reason == "SIGUSR1"


@pytest.mark.skipif(sys.platform == "win32", reason="its terminals send no signal")
def test_a_closed_terminal_asks_for_the_end_unless_it_is_to_be_ignored():
    """As under `nohup`, which has it ignored from the beginning."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop_on_signals() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.reason == "SIGHUP"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_on_signals() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)
