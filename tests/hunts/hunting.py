"""What all hunts share: a case, tried in a process of its own so that a crash or a hang is told from a refusal."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from detrkit.errors import UserError

SECONDS = 60  # of the processor; of the clock ten times as many, as others may want the machine too
WENT_ON, REFUSED, SURVIVED = "went on", "refused", "survived"
GOOD = (WENT_ON, REFUSED, SURVIVED)


@dataclass(frozen=True)
class Case:
    """Something that is tried.

    attempt: called with a new, empty folder. What it returns is a verdict, None for "went on"; UserError is "refused",
    and anything else that it raises is a fault.
    """

    name: str
    attempt: Callable[[Path], str | None]


@dataclass(frozen=True)
class Hunt:
    """All cases of a kind.

    counted: what the number of its cases is called. prepare: makes the cases, given a folder for what they share.
    """

    name: str
    counted: str
    prepare: Callable[[Path], Iterable[Case]]


@dataclass
class Bag:
    """What a hunt found."""

    known: int = 0
    """cases that there are"""
    verdicts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    """by the case's name"""
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return self.verdicts.total() + len(self.faults)


def hunt(cases: Iterable[Case], folder: Path, *, until: float = float("inf")) -> Bag:
    """Try cases one after another, until that time (of `time.monotonic`) at most; folder: each is given it empty."""
    cases = list(cases)
    bag, began = Bag(known=len(cases)), time.monotonic()
    for case in cases:
        if time.monotonic() > until:
            break
        told = in_a_fork(case, folder)
        if told in GOOD:
            bag.verdicts[told] += 1
        else:
            bag.faults[case.name] = told
            print(f"FAULT {case.name}: {told}", flush=True)
    bag.seconds = time.monotonic() - began
    return bag


def in_a_fork(case: Case, folder: Path) -> str:
    """A verdict of `GOOD`, or what ended the case: "crash: ...", "hang", a traceback."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (ceil(SECONDS), ceil(SECONDS) + 5))
        told = WENT_ON
        try:
            told = case.attempt(folder) or WENT_ON
        except UserError:
            told = REFUSED
        except OSError as error:  # told by the command line with its path
            told = REFUSED if error.filename else traceback.format_exc()
        except BaseException:
            told = traceback.format_exc()
        os.write(writer, told[-4000:].encode(errors="backslashreplace"))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (-signal.SIGALRM, -signal.SIGXCPU):
        return "hang"
    return told if status == 0 else f"crash: signal {-status}"


def in_a_child(work: Callable[[], Any], *, kill_after: float | None = None) -> Any:
    """What `work` returns in a fork, as JSON has it; None where it was killed, by itself or after so many seconds."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
            os._exit(0)
        finally:  # only after an error
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as file:
        told = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"it ended with {status}"
    return json.loads(told) if status == 0 else None


def verb(*arguments: object) -> str:
    """Run `detrkit ARGUMENTS` in this process, which ought to be a fork, and return what it says.

    Raises UserError if it says that something is wrong (exit code 2), and AssertionError if it says it badly.
    """
    from detrkit.cli import main

    kept = sys.argv, sys.stdout, sys.stderr
    said = io.BytesIO()
    output = io.TextIOWrapper(said, encoding="utf-8", write_through=True)
    errors = io.TextIOWrapper(said, encoding="utf-8", errors="backslashreplace", write_through=True)
    sys.argv, sys.stdout, sys.stderr = ["detrkit", *map(str, arguments)], output, errors
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        sys.argv, sys.stdout, sys.stderr = kept
    text = said.getvalue().decode()
    assert "Traceback" not in text, text
    controls = {letter for letter in text if unicodedata.category(letter) == "Cc"} - set("\n\t")
    assert not controls, f"control characters reach the terminal: {sorted(controls)} in {text!r}"
    assert code in (0, 1, 2), f"exit code {code}: {text}"
    if code == 2:
        assert text.strip(), "refused without a word"
        raise UserError(text)
    return text
