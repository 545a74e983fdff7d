"""What the GPU suite keeps of checks that fail, hang or are ended, and what its next call does: no GPU is needed."""

import os
import signal
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import gpu_suite
from gpu.checks import Check
from gpu.profile import gaps
from gpu.proxy import correlated
from gpu.record import Record

ARGUMENTS = Namespace(device="cpu", tiny=True, only=[], limits=1.0)


@dataclass(frozen=True)
class Planted(Check):
    function: object = None

    def load(self):
        return self.function


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Runs one check, `function` of a setting and how often it was called before, with its seconds."""
    calls = tmp_path / "calls"

    def run(function, seconds=60.0):
        def check(setting):
            before = len(calls.read_text()) if calls.exists() else 0
            with calls.open("a") as file:
                file.write(".")
            function(setting, before)

        monkeypatch.setattr(gpu_suite, "CHECKS", [Planted("planted.check", "Planted", seconds, check)])
        record = Record(tmp_path / "out")
        gpu_suite.run_all(record, ARGUMENTS, time.monotonic() + 60)
        return record

    return run


def measured(value):
    return lambda: {"value": value}


def raises():
    raise ValueError("out of memory")


def test_what_failed_or_hung_is_tried_again_and_nothing_else(suite):
    def check(setting, before):
        setting.attempt("time", "good", measured(before))
        setting.attempt("time", "bad", measured(before) if before else raises)
        setting.attempt("time", "slow", measured(before) if before else lambda: time.sleep(60))

    record = suite(check, seconds=5.0)
    assert record.state("planted.check") == "stopped"
    assert record.failed("planted.check") == ["bad"]
    assert "ValueError: out of memory" in record.log_path.read_text()
    record = suite(check)
    assert record.state("planted.check") == "done"
    assert {line["name"]: line["value"] for line in record.latest("planted.check")} == {"good": 0, "bad": 1, "slow": 1}
    lines = len(record.lines())
    assert len(suite(check).lines()) == lines  # it is done


def test_a_check_with_a_failed_line_or_a_traceback_is_not_done(suite):
    record = suite(lambda setting, before: setting.attempt("time", "bad", raises))
    assert record.state("planted.check") == "failed"
    record = suite(lambda setting, before: raises())
    assert "ValueError" in record.lines()[-1]["why"]
    record.path.write_text(record.path.read_text() + '{"check": "planted.check", "wh')  # killed while it wrote
    record = suite(lambda setting, before: setting.attempt("time", "bad", measured(1)))
    assert record.state("planted.check") == "done"


def test_a_check_is_ended_with_the_suite(suite, tmp_path):
    def check(setting, before):
        setting.attempt("time", "good", measured(before))
        setting.add("process", id=os.getpid())
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)

    kept = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as gpu_suite's own
    try:
        with pytest.raises(SystemExit):
            suite(check)
    finally:
        signal.signal(signal.SIGTERM, kept)
    record = Record(tmp_path / "out")
    assert record.state("planted.check") == "stopped"
    found = {line["what"]: line for line in record.latest("planted.check")}
    assert found["time"]["value"] == 0
    with pytest.raises(ProcessLookupError):
        os.kill(found["process"]["id"], 0)


def test_gaps_are_what_no_kernel_covers():
    spans = [
        (0.0, 1000.0, "a"),
        (500.0, 2000.0, "b"),
        (600.0, 700.0, "c"),
        (4000.0, 5000.0, "d"),
        (5500.0, 6000.0, "e"),
    ]
    found = gaps(spans)
    assert (found["milliseconds"], found["gaps_ms"], found["kernels"]) == (6.0, 2.5, 5)
    assert found["largest_gaps"][0].split() == ["2.000", "ms", "after", "b", "before", "d"]


def test_a_rank_correlation_has_its_interval():
    order = {name: float(place) for place, name in enumerate("abcdefgh")}
    swapped = order | {"a": 1.0, "b": 0.0}
    found = correlated(swapped, order)
    assert found["rho"] == pytest.approx(1 - 6 * 2 / (8 * 63), abs=1e-3)
    assert found["low"] < found["rho"] < found["high"] < 1
    assert correlated(order, order) == {"rho": 1.0}
    assert correlated({"a": 1.0}, order) == {}
