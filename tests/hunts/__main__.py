"""`python -m tests.hunts [NAME ...] [--seed N] [--minutes M] [--only TEXT] [--out FILE.json]`: hunts, and counts."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import damages, disks, kills, names, recipes, strangers
from .hunting import Bag, hunt
from .small_run import warm_up

HUNTS = {one.HUNT.name: one.HUNT for one in (kills, damages, disks, recipes, names, strangers)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hunts", description="Tries what may break detrkit.")
    parser.add_argument("names", nargs="*", help=f"which hunts; all of them if none is named: {', '.join(HUNTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the cases, and of what is drawn in them")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all hunts together; what is left is left out")
    parser.add_argument("--only", default="", help="only cases whose name has this text")
    parser.add_argument("--out", type=Path, help="a JSON file for the counts and faults")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in HUNTS]:
        parser.error(f"no hunt is called {unknown[0]}; there are {', '.join(HUNTS)}")
    torch.set_num_threads(1)
    chosen = asked.names or list(HUNTS)
    end, found = time.monotonic() + 60 * asked.minutes, dict[str, Bag]()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_STATE_HOME"] = f"{place}/state"
        os.chdir(place)
        warm_up(Path(place, "warm"))
        for number, name in enumerate(chosen):
            now = time.monotonic()
            shared = Path(place, name)
            shared.mkdir()
            random.seed(asked.seed)
            cases = [case for case in HUNTS[name].prepare(shared) if asked.only in case.name]
            random.Random(asked.seed).shuffle(cases)
            found[name] = hunt(cases, shared / "x", until=now + (end - now) / (len(chosen) - number))
            print(_row(name, found[name]), flush=True)
    print("\n| hunt | tried | of | survived or refused | went on | faults | seconds |\n| --- |" + " ---: |" * 6)
    for name, bag in found.items():
        print(_row(name, bag))
    if asked.out:
        counts = {HUNTS[name].counted: {**vars(bag), "tried": bag.tried} for name, bag in found.items()}
        asked.out.write_text(json.dumps({"seed": asked.seed, "hunts": counts}, indent=1) + "\n")
    sys.exit(any(bag.faults for bag in found.values()))


def _row(name: str, bag: Bag) -> str:
    good = bag.verdicts["survived"] + bag.verdicts["refused"]
    numbers = (bag.tried, bag.known, good, bag.verdicts["went on"], len(bag.faults), round(bag.seconds))
    return f"| {HUNTS[name].counted} | " + " | ".join(map(str, numbers)) + " |"


if __name__ == "__main__":
    main()
