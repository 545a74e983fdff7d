"""All that a GPU is asked, most valuable first, in a given time; a second call goes on with what is missing.

    python benchmarks/gpu_suite.py --out OUT                       # on a machine with a GPU, 8 minutes
    python benchmarks/gpu_suite.py --out OUT --minutes 3 --only fast
    python benchmarks/gpu_suite.py --out OUT --device cpu --tiny   # a rehearsal of all of it, with tiny sizes
    python benchmarks/gpu_suite.py --out OUT --report benchmarks/results/gpu_2026-12-01.md

Each check runs in a process of its own with a time limit. What it finds goes at once into OUT/results.jsonl, a line for
each number or table; its output into OUT/logs. A check that fails is written down with its traceback, and the next one
goes on; a second call tries it again. `benchmarks/gpu/` holds the checks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gpu.checks import CHECKS, Check
from gpu.record import Record
from gpu.report import page, summary

ROOT = Path(__file__).resolve().parents[1]
LEAST = 5  # seconds left under which no check is started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all checks together")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--only", nargs="+", default=[], help="checks by the beginnings of their names")
    parser.add_argument("--report", type=Path, help="write the results as a Markdown page, and measure nothing")
    parser.add_argument("--check", choices=[check.name for check in CHECKS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    record = Record(arguments.out)
    if arguments.report is not None:
        arguments.report.write_text(page(record), encoding="utf-8")
        print("written to", arguments.report)
    elif arguments.check is not None:
        run_here(next(c for c in CHECKS if c.name == arguments.check), record, arguments)
    else:
        if arguments.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise SystemExit("there is no CUDA GPU here; --device cpu --tiny rehearses")
        run_all(record, arguments)
        print(summary(record))


def run_all(record: Record, arguments: argparse.Namespace) -> None:
    """Every check that has no result yet, in order, until the time is up."""
    end = time.monotonic() + 60 * arguments.minutes
    for check in CHECKS:
        if arguments.only and not check.name.startswith(tuple(arguments.only)):
            continue
        left = end - time.monotonic()
        if record.is_done(check.name):
            print(f"{check.name}: done before", flush=True)
        elif left < LEAST:
            print(f"{check.name}: no time left", flush=True)
        else:
            run_apart(check, record, min(check.seconds, left), arguments)


def run_apart(check: Check, record: Record, seconds: float, arguments: argparse.Namespace) -> None:
    """A check in a process of its own, with all that it starts ended at its limit."""
    given = ["--out", arguments.out, "--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, given), "--check", check.name]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "DETRKIT_SECONDS": f"{seconds:.0f}"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    started = time.monotonic()
    with record.log(check.name) as log:
        # A session of its own: what the check has started is ended with it.
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = None
    took = time.monotonic() - started
    if code == 0:
        record.end(check.name, "done", took)
    elif code is None:
        record.end(check.name, "stopped", took, why=f"its limit of {seconds:.0f} s")
    else:
        record.end(check.name, "failed", took, why=f"ended with {code}:\n{record.tail(check.name)}")
    print(f"{check.name}: {record.state(check.name)} in {took:.0f} s", flush=True)


def run_here(check: Check, record: Record, arguments: argparse.Namespace) -> None:
    """The check itself, in the process that `run_apart` started."""
    import torch
    from gpu.setting import Setting

    torch.manual_seed(0)
    seconds = float(os.environ.get("DETRKIT_SECONDS", "600"))
    setting = Setting(torch.device(arguments.device), arguments.tiny, seconds, arguments.out)
    check.load()(setting, lambda what, **values: record.add(check.name, what, **values))


if __name__ == "__main__":
    main()
