"""Images a second of a training on the CPU by how torch's threads wait, on an idle machine and on a busy one.

    python benchmarks/threads.py                          # the quickstart, as it is and beside two computing processes
    python benchmarks/threads.py --busy 2 --rounds 5      # only the busy case
    python benchmarks/threads.py quickstart_dab data.image_size=128

The threads of a parallel region wait for the next one by spinning. Where other processes want the cores too, the
loader's workers among them, that takes their time, and whoever is waited for gets none. Each setting trains a while in
a process of its own, all of them in turn, and a round's speeds are divided by the first one's; what the environment
says of threads is taken out first. `cli/before_torch.py` sets what was chosen by this.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from detrkit.compare.timing import Ratio, take_turns

SETTINGS = {
    "libgomp's own": {"GOMP_SPINCOUNT": "300000"},  # what it takes where nothing is set
    "detrkit's own": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 30000": {"GOMP_SPINCOUNT": "30000"},
    "spin 100000": {"GOMP_SPINCOUNT": "100000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
LONGEST_START = 300.0  # seconds
BEGINNINGS = ("OMP_", "GOMP_", "KMP_", "MKL_")


def speed(recipe: Sequence[str], setting: dict[str, str], seconds: float) -> float:
    """Images a second of a training, from its first step on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(BEGINNINGS)}
    with tempfile.TemporaryDirectory() as folder:
        run, batch = Path(folder, "run"), 16
        values = [f"train.batch_size={batch}", "train.log_every=1", "train.loggers=[]", "train.evaluate_every=0"]
        values += ["train.epochs=10000", "train.device=cpu", f"--run-dir={run}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "detrkit", "train", *recipe, *values],
            env={**environment, **setting},
            stdout=subprocess.DEVNULL,
            stderr=(Path(folder) / "errors.txt").open("wb"),
        )
        try:
            begin, first = _wait_for_step(process, run / "metrics.jsonl")
            time.sleep(seconds)
            now, last = _wait_for_step(process, run / "metrics.jsonl", after=first)
        finally:
            process.kill()  # nothing of the run is wanted, and its workers end with it
            process.wait()
    return batch * (last - first) / (now - begin)


def _wait_for_step(process: subprocess.Popen, path: Path, after: int = 0) -> tuple[float, int]:
    """When the next step ended, and its number."""
    end, before = time.monotonic() + LONGEST_START, None
    while time.monotonic() < end:
        if process.poll() is not None:
            told = (path.parent.parent / "errors.txt").read_text()
            raise SystemExit(f"the training ended by itself, with exit code {process.returncode}\n{told}")
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        steps = [json.loads(line)["step"] for line in lines[-2:] if line.endswith("\n")]
        now = steps[-1] if steps else 0
        if before is not None and now > max(before, after):
            return time.monotonic(), now
        before = now
        time.sleep(0.01)
    raise SystemExit(f"no step in {LONGEST_START:.0f} seconds")


@contextmanager
def others(count: int) -> Iterator[None]:
    """That many other processes that compute."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="*", default=["quickstart"], help="a recipe, and KEY=VALUE")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="how many other processes compute")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of each training")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    settings = {name: SETTINGS[name] for name in arguments.only}
    for count in arguments.busy:
        load = os.getloadavg()[0]
        with others(count):
            runs = {
                name: partial(speed, arguments.recipe, setting, arguments.seconds) for name, setting in settings.items()
            }
            found = take_turns(runs, rounds=arguments.rounds, warmup=0)
        print(
            f"{arguments.recipe[0]} beside {count} computing processes, {os.cpu_count()} cores, load before {load:.1f}"
        )
        base = next(iter(found.values()))
        for name, speeds in found.items():
            line = f"  {name:14} {median(speeds):7.1f} images/s ({min(speeds):.1f} to {max(speeds):.1f})"
            if arguments.rounds > 1:
                ratio = Ratio.of(speeds, base)
                line += f"  {ratio.middle:6.2f} times (quartiles {ratio.low:.2f} to {ratio.high:.2f})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
