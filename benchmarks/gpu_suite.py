"""All that a GPU is asked, most valuable first, in a given time; a second call goes on with what is missing.

    python benchmarks/gpu_suite.py --out OUT                       # on a machine with a GPU, 8 minutes
    python benchmarks/gpu_suite.py --out OUT --minutes 3 --only fast
    python benchmarks/gpu_suite.py --out OUT --device cpu --tiny   # a rehearsal of all of it, with tiny sizes
    python benchmarks/gpu_suite.py --out OUT --report benchmarks/results/gpu_2026-12-01.md

Each check runs in a process of its own with a time limit; it is forked from this one, which has imported all and
touched no GPU, so that starting it takes no time. What it finds goes at once into OUT/results.jsonl, a line for each
thing; its output into OUT/log.txt. What fails is written down with its error, and the next thing goes on; a second call
tries it again, and nothing that has a result. OUT/page.md shows it all. `benchmarks/gpu/` holds the checks.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
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
    parser.add_argument("--limits", type=float, default=1.0, help="times the checks' own limits, for a slow machine")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--only", nargs="+", default=[], help="checks by the beginnings of their names")
    parser.add_argument("--report", type=Path, help="write the results as a Markdown page, and measure nothing")
    parser.add_argument("--check", nargs=2, metavar=("NAME", "SECONDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    record = Record(arguments.out.resolve())
    if arguments.report is not None:
        arguments.report.write_text(page(record), encoding="utf-8")
        print("written to", arguments.report)
        return
    if arguments.check is not None:
        name, seconds = arguments.check
        import_all()
        run_here(next(check for check in CHECKS if check.name == name), record, float(seconds), arguments)
    end = time.monotonic() + 60 * arguments.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a check under way is ended with this
    try:
        import_all()
        if arguments.device == "cuda" and not torch_sees_a_gpu():
            raise SystemExit("there is no CUDA GPU here; --device cpu --tiny rehearses")
        run_all(record, arguments, end)
    finally:
        (record.folder / "page.md").write_text(page(record), encoding="utf-8")
        print(summary(record))


def import_all() -> None:
    """What the checks need, once for all of them."""
    started = time.monotonic()
    sys.path.insert(1, str(ROOT))  # the tests' helpers
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A process that has asked the CUDA runtime cannot be forked into one that uses it; the driver's library may be
    # asked. Should that fail, `run_here` begins anew.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for check in CHECKS:
        check.load()
    print(f"imported in {time.monotonic() - started:.0f} s", flush=True)


def torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_all(record: Record, arguments: argparse.Namespace, end: float) -> None:
    """Every check that is not done yet, in order, until the time is up."""
    for check in CHECKS:
        if arguments.only and not check.name.startswith(tuple(arguments.only)):
            continue
        left = end - time.monotonic()
        if record.state(check.name) == "done":
            print(f"{check.name}: done before", flush=True)
        elif left < LEAST:
            print(f"{check.name}: no time left", flush=True)
        else:
            run_apart(check, record, min(check.seconds * arguments.limits, left), arguments)


def run_apart(check: Check, record: Record, seconds: float, arguments: argparse.Namespace) -> None:
    """A check in a process of its own; that and all that it has started is ended at its limit."""
    started = time.monotonic()
    place = record.begin_log(check.name)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()  # what the check starts is ended with it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(record.log_path, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
        run_here(check, record, seconds, arguments)
    code = None
    try:
        while code is None and time.monotonic() - started < seconds:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
    finally:
        if code is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        took = time.monotonic() - started
        failed = record.failed(check.name)
        if code is None:
            record.end(check.name, "stopped", took, why=f"after {took:.0f} s of {seconds:.0f}")
        elif code:
            record.end(check.name, "failed", took, why=f"ended with {code}:\n{record.tail(place)}")
        elif failed:
            record.end(check.name, "failed", took, why=f"{len(failed)} of its lines: {', '.join(failed)}")
        else:
            record.end(check.name, "done", took)
        print(f"{check.name}: {record.state(check.name)} in {took:.0f} s", flush=True)


def run_here(check: Check, record: Record, seconds: float, arguments: argparse.Namespace) -> None:
    """The check itself, in the process that was made for it, which ends here."""
    code = 1
    try:
        import torch
        from gpu.setting import Setting

        if arguments.device == "cuda" and torch.cuda._is_in_bad_fork():
            print("CUDA was asked before the fork: beginning anew", flush=True)
            again = [sys.executable, *sys.argv, "--check", check.name, f"{seconds:.0f}"]
            os.execv(sys.executable, again)
        torch.manual_seed(0)
        setting = Setting(torch.device(arguments.device), arguments.tiny, seconds, record, check.name)
        check.load()(setting)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
