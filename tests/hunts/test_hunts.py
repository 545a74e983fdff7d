"""A share of each hunt, and that hunts find what they are after; `python -m tests.hunts` tries all of it."""

import faulthandler
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from detrkit.errors import UserError

from . import damages, disks, kills, names, recipes, strangers
from .calls import watch_calls
from .hunting import Case, hunt, in_a_child, in_a_fork, verb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tries each case in a fork, with limits of its own")

SHARES = {
    "kills": lambda place: islice(kills.cases(place), 30, 200, 60),
    "damages": lambda place: islice(damages.cases(place), 0, None, 160),
    "disks": lambda place: islice(disks.cases(place, ["train", "evaluate"]), 2, None, 25),
    "recipes": lambda place: islice(recipes.cases(place), 15),
    "names": lambda place: islice(names.cases(place), 10, None, 150),
    "strangers": lambda place: islice(strangers.cases(place), 2, None, 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_a_share_finds_nothing(tmp_path, name):
    bag = hunt(SHARES[name](tmp_path), tmp_path / "x")
    assert bag.tried > 2
    assert bag.faults == {}


def raises(error):
    raise error


def crashes():
    faulthandler.disable()  # it would print the planted crash as if the suite had had one
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        (lambda _: None, "went on"),
        (lambda _: "survived", "survived"),
        (lambda _: raises(UserError("no")), "refused"),
        (lambda _: raises(OSError(28, "full", "a.txt")), "refused"),
        (lambda _: raises(OSError(28, "full")), "Traceback"),
        (lambda _: raises(KeyError("momentum")), "KeyError: 'momentum'"),
        (lambda _: verb("evaluate"), "refused"),
        (lambda _: verb("nothing"), "refused"),
        (lambda _: crashes(), "crash: signal 11"),
    ],
)
def test_verdicts(tmp_path, attempt, told):
    assert told in in_a_fork(Case("one", attempt), tmp_path / "x")


def test_what_never_ends_is_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.hunts.hunting.SECONDS", 0.1)
    assert in_a_fork(Case("one", lambda _: time.sleep(60)), tmp_path / "x") == "hang"


def test_control_characters_do_not_reach_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("detrkit.cli.main", lambda: print("\x1b[31mred"))
    with pytest.raises(AssertionError, match="control characters"):
        verb("recipes")


def test_calls_are_told_before_they_are_made(tmp_path):
    def work():
        told = []
        watch_calls(tmp_path, lambda number, path: told.append((number, Path(path).name)), only_writes=True)
        (tmp_path / "a").write_text("x")
        (tmp_path / "a").read_text()
        (tmp_path / "b").mkdir()
        Path("/dev/null").write_text("x")
        (tmp_path / "a").rename(tmp_path / "c")
        return told

    assert in_a_child(work) == [[1, "a"], [2, "b"], [3, "a"]]
