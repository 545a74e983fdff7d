"""Change one thing in a module and see whether a test notices: `python -m tests.mutants detrkit/boxes.py --sample 80`.

Prints each mutant that lived, and for each module the share that was killed with its 95 % (Wilson) interval. A mutant
meets the tests that enter its function until one fails, first those that are quick and have killed others. Needs the
package mutmut (3.8 or newer), whose operators make the mutants. Its runner is not used: it puts a switch into each
function, leaves decorated ones out, and runs all tests first. Here everything is imported and collected once, and each
mutant is a fork in which one function has other code.

What is changed: operators, comparisons, conditions, numbers, names and arguments in the bodies of functions. Left
alone: defaults, module and class level, annotations, error messages, and arguments that only a GPU would miss. Mutants
that mean the same stand with a reason in `tests/equivalent_mutants.txt` and are not counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.mutations import ROOT, mutants_of

EQUIVALENT = ROOT / "tests/equivalent_mutants.txt"
MODEL = [
    *("attention", "blocks", "boxes", "corrections", "criterion", "deformable", "dense_attention"),
    *("geometry", "matcher", "matching_and_losses", "noise", "one_to_many", "placed", "quality"),
    *("query_position", "refusals", "salient_queries", "selection", "softmax", "torchvision_form"),
]
TESTS = ["tests/twins", *(f"tests/model/test_{name}.py" for name in MODEL), "tests/show/test_recording.py"]


def codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from codes(const)


def held(modules: list[str]) -> dict[tuple[str, str], list[FunctionType]]:
    """The functions of modules by module and name, wherever they are held."""
    paths = {str(ROOT / module): module for module in modules}
    found: dict[tuple[str, str], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and (module := paths.get(thing.__code__.co_filename)):
            found.setdefault((module, thing.__code__.co_qualname), []).append(thing)
    return found


def forked(work: Callable[[], object], seconds: float) -> object:
    """What `work` returns in a fork; None where it ended otherwise or took more CPU seconds."""
    read, write = os.pipe()
    sys.stdout.flush()
    if not (child := os.fork()):
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1), os.dup2(nowhere, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds),) * 2)
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else None


class Hunt:
    """A pytest plugin that runs the collected tests in its own way."""

    def __init__(self, options):
        self.options = options

    def enter(self, session) -> list:
        """Of each test the functions that it enters and its CPU seconds; nothing of one that does not pass."""
        paths, found = {str(ROOT / module) for module in self.options.modules}, []
        for item in session.items:
            entered, failed = set(), session.testsfailed

            def note(frame, _event, _arg, entered=entered):  # of calls alone: what it returns would hear of lines
                if frame.f_code.co_filename in paths:
                    entered.add(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname.split('.<locals>')[0]}")

            start = time.process_time()
            sys.settrace(note)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            sys.settrace(None)
            found.append([] if session.testsfailed > failed else [sorted(entered), time.process_time() - start])
        return found

    def pytest_runtestloop(self, session):
        known = EQUIVALENT.read_text()
        again = self.options.again.read_text() if self.options.again else None
        functions = held(self.options.modules)
        gc.freeze()  # forks share what they do not touch
        tests = []
        for item, found in zip(session.items, forked(lambda: self.enter(session), 3600), strict=True):
            if found and found[1] < self.options.slowest:
                tests.append((found[1], set(found[0]), item))
            else:
                print(f"{'takes too long' if found else 'fails as it is'}: {item.nodeid}", flush=True)
        tests.sort(key=lambda test: test[0])
        self.kills = Counter()
        spent = sum(test[0] for test in tests)
        print(f"{len(tests)} of {len(session.items)} tests take part, {spent:.0f} CPU seconds", flush=True)
        for module in self.options.modules:
            count, mutants = mutants_of(module, self.options.seed)
            open_ones = (m for m in mutants if f"{m} | " not in known and (again is None or f": {m}\n" in again))
            drawn = list(islice(open_ones, self.options.sample))
            killed, start = 0, cpu_seconds()
            for mutant in drawn:
                verdict = self.verdict(mutant, tests, functions[module, mutant.function], session)
                killed += verdict == "killed"
                if verdict != "killed":
                    print(f"{verdict}: {mutant}", flush=True)
            share = interval(killed, len(drawn))
            took = f"{cpu_seconds() - start:.0f} CPU seconds"
            print(f"== {module}: {killed} of {len(drawn)} killed, {share}, out of {count}; {took}", flush=True)
        return True

    def verdict(self, mutant, tests, functions, session) -> str:
        chosen, spent = [], 0.0
        for seconds, entered, item in sorted(tests, key=lambda test: test[0] / (0.1 + self.kills[test[2].nodeid])):
            if f"{ROOT / mutant.module}:{mutant.function}" in entered and spent < self.options.seconds:
                chosen.append(item)
                spent += seconds
        if not chosen:
            return "no test"
        killer = forked(lambda: self.killer(mutant, functions, chosen, session), 5 * spent + 10)
        self.kills[killer] += 1
        return "lives" if killer == "none" else "killed"

    def killer(self, mutant, functions, items, session) -> str:
        """Which test fails."""
        code = compile(mutant.code, str(ROOT / mutant.module), "exec", dont_inherit=True)
        new = {c.co_qualname: c for c in codes(code)}[mutant.function]
        for function in functions:
            function.__code__ = new
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return item.nodeid
        return "none"


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(os.times()[:4])


def interval(part: int, whole: int, z: float = 1.96) -> str:
    """A share in percent with Wilson's interval."""
    if not whole:
        return "none"
    share, spread = part / whole, z * z / whole
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / whole + spread / (4 * whole))
    return f"{100 * share:.0f} % [{100 * (middle - half):.0f}, {100 * (middle + half):.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="such as detrkit/boxes.py")
    parser.add_argument("--sample", type=int, default=80, help="mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slowest", type=int, default=2, help="CPU seconds of a test that takes part")
    parser.add_argument("--seconds", type=float, default=10.0, help="of tests for each mutant, the quickest of them")
    parser.add_argument(
        "--again", type=Path, help="what an earlier run printed: take no mutants but those that it names"
    )
    parser.add_argument("--tests", nargs="+", default=TESTS)
    options = parser.parse_args()
    settings.register_profile(
        "mutants",
        settings(
            database=None,
            max_examples=25,
            derandomize=True,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "-q",
            "-s",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            "--hypothesis-profile=mutants",
            f"--basetemp={folder}/tests",
        ]
        sys.exit(pytest.main([*arguments, *options.tests], plugins=[Hunt(options)]))


if __name__ == "__main__":
    main()
