import signal

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


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
